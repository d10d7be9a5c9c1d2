//! `lowtide probe`: this machine's rates, stored with their date.

use std::io::Read;
use std::path::Path;

use lowtide_config::Run;
use lowtide_data::clock::today;
use lowtide_measure::{Drive, ProbeOptions, probe as measure};
use lowtide_planner::Machine;
use lowtide_trainer::Bytes;
use lowtide_trainer::basis::net_of;
use lowtide_trainer::device::{self, Device};
use lowtide_trainer::hub::settle;
use lowtide_trainer::inputs::sample_of;
use lowtide_trainer::output::folder::{Folder, Found, pending};
use lowtide_trainer::planning::{decoder_of, probed, shape_of};
use lowtide_trainer::report::Phase;
use lowtide_trainer::threads::{threads_of, usual_threads};
use serde_json::json;

use crate::Answer;
use crate::args::{ProbeArgs, directories, texts};
use crate::error::CliError;
use crate::out::{Out, seconds};
use crate::progress::Waiting;

/// Bytes of a file by which it is known.
const HEAD: u64 = 4096;

/// Seconds spent on each figure, about.
const SECONDS: f64 = 0.5;

/// Measures and stores.
pub fn probe(args: &ProbeArgs, out: Out) -> Answer {
    // What cannot be written is an error before minutes of measuring, and a file that is there stays until the
    // new one is whole.
    let rates = |head: &str| head.trim_start().starts_with('{') && head.contains("\"matmul_bf16\"");
    let (folder, name) = place("--out", &args.out, rates)?;
    let run = match &args.file {
        Some(file) => {
            let run = Run::load(file, &texts("--set", &args.sets)?)?;
            Some(settle(run)?)
        }
        None => None,
    };
    let rated = args.disk_rated_writes.as_deref().map(str::parse::<Bytes>);
    let rated = rated.transpose().map_err(|e| CliError::Usage {
        what: format!("--disk-rated-writes: {e}"),
        help: "--disk-rated-writes 600TB",
    })?;
    let device = device_named(args.device.as_deref(), run.as_ref(), args.gpus)?;
    out.text(&device.note);
    let decoder = match &run {
        Some(run) => Some(decoder_of(run, run.batch(), device.target)?),
        None => None,
    };
    let named = directories("--disk", &args.disk)?
        .into_iter()
        .map(|dir| Drive { dir, most: None });
    let mut drives: Vec<Drive> = named.collect();
    if let Some(run) = &run
        && drives.is_empty()
    {
        drives = probed(run);
    }
    let threads = match (args.threads, &run) {
        (Some(n), _) => n as usize,
        (None, Some(run)) => threads_of(run),
        (None, None) => usual_threads(),
    };
    let options = ProbeOptions {
        threads,
        drives,
        seconds: SECONDS,
        optimizer: run
            .as_ref()
            .map(|run| run.optimizer.what())
            .unwrap_or_default(),
        date: today(),
        gpu: device.gpu.clone(),
        room: run.as_ref().and_then(|run| run.budget.device),
    };
    let waiting = Waiting::begin(Phase::Measuring.name());
    let gpus = args.gpus.or(run.as_ref().map(|run| run.gpus)).unwrap_or(1);
    let net = net_of(gpus, &device)?;
    let mut machine = measure(
        &options,
        [None, decoder.as_deref()],
        run.as_ref().and_then(sample_of).as_ref(),
    )?;
    drop(waiting);
    machine.net = net;
    if let Some(disk) = &mut machine.disk {
        disk.rated_writes = rated;
    }
    out.text(&table(&machine));
    let text = serde_json::to_string_pretty(&machine).expect("plain values") + "\n";
    folder.write(&name, |out| out.write_all(text.as_bytes()))?;
    out.text(&format!(
        "stored in {}; use it as plan.machine",
        args.out.display()
    ));
    let mut answer = json!(machine);
    answer["file"] = json!(args.out.display().to_string());
    Ok((answer, 0))
}

/// The directory and the name of a file to write, which was tried. A file that is there must be one of those that
/// this option writes, by its first bytes: whatever else has that name is not lowtide's to replace.
pub fn place(
    flag: &str,
    out: &Path,
    ours: impl Fn(&str) -> bool,
) -> Result<(Folder, String), CliError> {
    let Some(name) = out.file_name().and_then(|name| name.to_str()) else {
        return Err(CliError::Usage {
            what: format!("{flag} {}: no name of a file", out.display()),
            help: "give a path that ends in a name of plain text",
        });
    };
    let above = out.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = Folder::open(above.unwrap_or(Path::new(".")))?;
    let usage = |what: &str, help| CliError::Usage {
        what: format!("{flag} {}: {what}", out.display()),
        help,
    };
    if folder.expect(name, Found::File)? {
        let mut head = Vec::new();
        let mut file = folder.read(name)?.take(HEAD);
        file.read_to_end(&mut head)
            .map_err(|e| usage(&format!("cannot be read: {e}"), "give another name"))?;
        if !head.is_empty() && !ours(&String::from_utf8_lossy(&head)) {
            return Err(usage(
                "a file of that name is there, which no such command wrote",
                "give another name, or remove it",
            ));
        }
    }
    let tried = pending(name);
    if folder.found(&tried)? != Found::Nothing {
        return Err(usage(
            &format!("{tried} is in the way"),
            "a command that was killed may have left it: remove it, or give another name",
        ));
    }
    folder.create_new(&tried)?;
    folder.remove(&tried)?;
    Ok((folder, name.to_owned()))
}

/// The device to measure: the one named, else the run's, else what `auto` gives; and others beside it, as many as named
/// or as the run has.
pub fn device_named(
    name: Option<&str>,
    run: Option<&Run>,
    gpus: Option<u32>,
) -> Result<Device, CliError> {
    let mut sets = Vec::new();
    if let Some(name) = name {
        sets.push(format!("device={name}"));
    }
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    // Without a run any shape does: only its attention is asked about.
    sets.push("model.shape=qwen2.5-0.5b".to_owned());
    let any = Run::parse("", "the command line", &here, &sets)?;
    let mut asked = run.unwrap_or(&any).clone();
    if name.is_some() {
        asked.device = any.device;
    }
    asked.gpus = gpus.unwrap_or(asked.gpus);
    Ok(device::open(&asked, &shape_of(&asked)?)?)
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
