//! `lowtide probe`: this machine's rates, stored with their date.

use lowtide_config::Run;
use lowtide_planner::Machine;
use lowtide_trainer::{Bytes, Names, Phase, Probe, device, resolve};
use serde_json::json;

use crate::Answer;
use crate::args::{ProbeArgs, directories, texts};
use crate::error::CliError;
use crate::out::{Out, place, seconds};
use crate::progress::Waiting;

/// Measures and stores.
pub fn probe(args: &ProbeArgs, out: Out) -> Answer {
    // What cannot be written is an error before minutes of measuring, and a file that is there stays until the
    // new one is whole.
    let rates = |head: &str| head.trim_start().starts_with('{') && head.contains("\"matmul_bf16\"");
    let to = place("--out", &args.out, rates)?;
    let run = match &args.file {
        Some(file) => {
            let run = Run::load(file, &texts("--set", &args.sets)?)?;
            Some(resolve(run, Names::Model)?)
        }
        None => None,
    };
    let rated = args.disk_rated_writes.as_deref().map(str::parse::<Bytes>);
    let rated = rated.transpose().map_err(|e| CliError::Usage {
        what: format!("--disk-rated-writes: {e}"),
        help: "--disk-rated-writes 600TB",
    })?;
    let device = device(args.device.as_deref(), run.as_ref(), args.gpus)?;
    out.text(&device.note);
    let probe = Probe {
        run: run.as_ref(),
        gpus: args.gpus,
        threads: args.threads.map(|n| n as usize),
        disks: directories("--disk", &args.disk)?,
    };
    let mut machine = probe.measure(&device, || Waiting::begin(Phase::Measuring.name()))?;
    if let Some(disk) = &mut machine.disk {
        disk.rated_writes = rated;
    }
    out.text(&table(&machine));
    let text = serde_json::to_string_pretty(&machine).expect("plain values") + "\n";
    to.write(&text)?;
    out.text(&format!(
        "stored in {}; use it as plan.machine",
        args.out.display()
    ));
    let mut answer = json!(machine);
    answer["file"] = json!(args.out.display().to_string());
    Ok((answer, 0))
}

fn table(m: &Machine) -> String {
    let gb = |x: f64| format!("{:.2} GB/s", x / 1e9);
    let row = |name: &str, value: String| (name.to_owned(), value);
    let mut rows = vec![
        row(
            "matrix product, bf16",
            format!("{:.1} GFLOP/s", m.matmul_bf16.0 / 1e9),
        ),
        row(
            "matrix product, f32",
            format!("{:.1} GFLOP/s", m.matmul_f32.0 / 1e9),
        ),
        row("device memory", gb(m.device_memory.0)),
        row("host to device", gb(m.h2d.0)),
        row("device to host", gb(m.d2h.0)),
    ];
    for update in m.updates.iter() {
        let title = update.optimizer.name.about().title;
        let rate = |x: f64| format!("{:.3} G parameters/s", x / 1e9);
        rows.push(row(&format!("{title} on the host"), rate(update.host)));
        rows.push(row(&format!("{title} on the device"), rate(update.device)));
    }
    rows.push(row("to start a task", seconds(m.host_overhead.0)));
    if let Some(net) = &m.net {
        let name = format!("{} ranks, each gets", net.ranks);
        rows.push(row(&name, gb(net.rate.0)));
    }
    match &m.disk {
        None => rows.push(row("disk", "not measured (--disk DIR)".to_owned())),
        Some(d) => rows.extend([
            row("disk read", gb(d.read.0)),
            row("disk write", gb(d.write.0)),
            row("disk, both at once", gb(d.mixed.0)),
        ]),
    }
    if let Some(direct) = m.disk.and_then(|d| d.direct) {
        rows.extend([
            row("disk to device", gb(direct.read.0)),
            row("device to disk", gb(direct.write.0)),
            row("both at once", gb(direct.mixed.0)),
        ]);
    }
    if !m.ops.is_empty() {
        rows.push(row("operations timed", m.ops.len().to_string()));
    }
    let rows: Vec<String> = rows
        .iter()
        .map(|(n, v)| format!("{n:<22}{v:>24}"))
        .collect();
    let mut text = format!("{} ({}, {})\n{}", m.name, m.note, m.date, rows.join("\n"));
    for t in &m.together {
        let slow = t
            .speed
            .iter()
            .map(|(lane, x)| format!("{lane} {:.2}", 1.0 / x));
        let lanes: Vec<String> = slow.collect();
        text += &format!("\n  at once, times as long: {}", lanes.join(", "));
    }
    text
}
