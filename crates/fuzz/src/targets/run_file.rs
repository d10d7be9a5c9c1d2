//! A run file.

use std::path::Path;

use lowtide_config::Run;

use super::message;

pub(super) fn read(bytes: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(message)?;
    let run = Run::parse(text, "fuzz.yaml", Path::new("/fuzz"), &[]).map_err(|e| {
        let _ = (e.key(), e.place());
        message(e)
    })?;
    // What other crates make of it without reading what it names.
    let _ = run.training_ready();
    let _ = run.numerics_key().to_string();
    let batch = run.batch();
    let _ = (batch.rows(), batch.tokens(), batch.input_bytes());
    let _ = (run.budget.disk_total(), run.data.has_eval());
    let _ = lowtide_trainer::inside::pins_of(&run);
    let _ = lowtide_trainer::inside::clip_of(&run);
    let _ = lowtide_trainer::inside::load_options(&run);
    for total in [1, 1000, u64::MAX] {
        assert!(run.train.schedule.warmup.steps(total) <= total.max(1 << 62));
    }
    Ok(())
}
