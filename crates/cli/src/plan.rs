//! `lowtide plan`: arithmetic only, for this machine or any other.
//!
//! One file because all that is shown of a plan stands in the order in which it is shown.

use std::path::{Path, PathBuf};

use lowtide_config::Run;
use lowtide_planner::explain::{explain, explain_choices, explain_updates, lane_of, split};
use lowtide_planner::plan::LaneKind;
use lowtide_planner::search::links::Link;
use lowtide_planner::search::outlook::{Change, Outlook, Why};
use lowtide_planner::traffic::{explain_cores, traffic};
use lowtide_planner::waits::Cause;
use lowtide_planner::{Machine, Plan, Source, Tier};
use lowtide_report::memory::Memory;
use lowtide_report::picture;
use lowtide_report::step::waited_for;
use lowtide_report::sweep::{Along, Sweep, html, svg, text};
use lowtide_trainer::{
    Launch, Names, OfCompression, OfExact, Phase, Place, PlanMade, Planner, Seconds, StepsOfWrites,
    TrainError, Wear, resolve,
};
use serde_json::{Map, Value, json};

use crate::Answer;
use crate::args::{Clip, CurveOver, PlanArgs, Precision, overrides, texts};
use crate::error::{CliError, machine_json};
use crate::out::{Out, bytes, place, quoted, seconds};
use crate::progress::Waiting;

/// How many steps a run may make that may not write all it likes, where it is unknown how many it has.
fn steps_of_writes(of: &StepsOfWrites) -> String {
    let why = match &of.unknown {
        None => "only its data say how many steps its epochs are".to_owned(),
        Some(e) => format!("how many steps its epochs are is unknown: {e}"),
    };
    format!(
        "budget.disk_writes: {} are {} steps of this run; {why}",
        of.allowed, of.steps
    )
}

/// What a shape is planned for where no machine is given.
const REFERENCE: &str = include_str!("../../../examples/machines/h200.json");

/// Plans a run or a shape and shows the plan. Long because all that is shown of a plan stands here in its order.
pub fn plan(args: &PlanArgs, out: Out) -> Answer {
    let mut run = resolve(run_of(args)?, Names::Model)?;
    if let Some(hosts) = args.hosts {
        if !run.gpus.is_multiple_of(hosts) {
            return Err(CliError::Usage {
                what: format!(
                    "--hosts {hosts} and {} GPUs: every host has as many of them",
                    run.gpus
                ),
                help: "give --gpus a multiple of --hosts: it is the number of all GPUs",
            });
        }
        Launch::allows(&run, hosts).map_err(|what| CliError::Usage {
            what,
            help: "--set checkpoint.durable=false plans the run without it",
        })?;
        run.hosts = hosts;
    }
    // Files that cannot be written are an error before minutes of planning.
    let files = pictures(args)?;
    let planner = planner_of(args, &run, out)?;
    let (machine, workload) = (planner.machine(), planner.workload());
    let batch = run.batch();
    let about = json!({
        "model": workload.model,
        "parameters": workload.parameters(),
        "trained_parameters": workload.trained(),
        "batch": batch,
        "strategy": run.lsp.map_or(json!("exact"), |lsp| json!({"lsp": lsp})),
        "optimizer": workload.optimizer.name.name(),
        "moments": workload.optimizer.moments.name(),
        "machine": machine_json(machine),
    });
    let waiting = Waiting::begin(Phase::Planning.name());
    let made = planner.plan(args.brief);
    drop(waiting);
    let made = match made {
        Ok(made) => made,
        Err(TrainError::Refused(refused)) => return Err(CliError::Refused { refused, about }),
        Err(e) => return Err(e.into()),
    };
    let plan = &made.plan;
    if let Some(writes) = &made.writes {
        out.text(&steps_of_writes(writes));
    }
    let step = plan.prediction.step_seconds.0;
    let tokens_per_second = batch.tokens() as f64 / step;
    // The workload is one rank's.
    let model_tflops = workload.model_flops.0 * f64::from(plan.ranks) / step / 1e12;
    let targets = match batch.target {
        0 => String::new(),
        target => format!(" with targets of {target}"),
    };
    out.text(&format!(
        "{}: {} parameters, {} x {} tokens{targets}, {} micro-batches a step",
        plan.model,
        millions(workload.parameters()),
        batch.micro_batch,
        batch.seq,
        batch.accumulate,
    ));
    out.text(&rates_line(machine));
    let cuda = planner.is_gpu();
    let answers = planner.plan_answers(&made)?;
    let memory = planner.memory(&made, answers.as_ref());
    out.text(&memory.table().text());
    out.text(explain(plan, workload, cuda).trim_end());
    out.text(explain_choices(plan).trim_end());
    out.text((explain_updates(plan, machine, cuda) + &explain_cores(plan, workload)).trim_end());
    let exact = match args.brief {
        true => None,
        false => planner.exact(&made)?,
    };
    if let Some(exact) = &exact {
        out.text(&beside_exact(exact));
    }
    let waits = planner.gpu_waits(&made);
    if let Some(line) = waits_line(&waits, step, cuda) {
        out.text(&line);
    }
    out.text(&format!(
        "{tokens_per_second:.1} tokens/s, {model_tflops:.2} model TFLOP/s"
    ));
    if let Some(answers) = &answers {
        out.text(&answers.line());
    }
    let mut compressions = Vec::new();
    if let Some(outlook) = &made.what_if {
        compressions = planner.compressions(&made)?;
        let others = other_compressions(&compressions);
        out.text((outlook_text(outlook, step, cuda) + &others).trim_end());
    }
    drives(plan, machine).iter().for_each(|line| out.text(line));
    let mut answer = about;
    describe(plan, &memory, &mut answer);
    answer["tokens_per_second"] = json!(tokens_per_second);
    if let Some(answers) = answers {
        answer["answers"] = answers.json();
    }
    answer["model_tflops"] = json!(model_tflops);
    if let Some(exact) = exact {
        answer["exact"] = json!(exact);
        answer["compressions"] = json!(compressions);
    }
    let [host, resident, streamed] = split(plan, machine);
    answer["updates"] = json!({"host": host, "resident": resident, "streamed": streamed});
    answer["gpu_waits"] = waits
        .iter()
        .map(|(cause, s)| json!({"cause": cause, "seconds": s}))
        .collect();
    answer["outlook"] = json!(made.what_if);
    answer["wear"] = json!(Wear::of(plan, machine));
    if let Some(over) = args.curve {
        answer["curve"] = json!(draw(over, &planner, &made, &files, out)?);
    } else if let Some(place) = &files[0] {
        place.write(&picture::alone(&planner.picture(&made)))?;
    }
    Ok((answer, 0))
}

/// Where the pictures go, `--svg` and `--html`.
type Pictures = [Option<Place>; 2];

fn pictures(args: &PlanArgs) -> Result<Pictures, CliError> {
    let place_of = |flag, file: &Option<PathBuf>, begin: &'static str| {
        let ours = |head: &str| head.starts_with(begin);
        file.as_ref().map(|f| place(flag, f, ours)).transpose()
    };
    let files = [
        place_of("--svg", &args.svg, "<svg ")?,
        place_of("--html", &args.html, "<!doctype html>")?,
    ];
    if let [Some(picture), Some(page)] = &files
        && picture.path() == page.path()
    {
        return Err(CliError::Usage {
            what: format!("--svg and --html are both {}", page.path().display()),
            help: "give each a name of its own",
        });
    }
    Ok(files)
}

/// What the plan is made from: the machine of a file, without asking anything of this one, or this one, measured now.
fn planner_of<'a>(args: &PlanArgs, run: &'a Run, out: Out) -> Result<Planner<'a>, TrainError> {
    match (&args.machine, &args.file, &run.plan.machine) {
        (Some(path), _, _) | (None, _, Some(path)) => Planner::of_machine(run, path, None),
        (None, None, None) => {
            out.text("rates: the reference H200 (examples/machines/h200.json); --machine FILE for others");
            let machine = serde_json::from_str(REFERENCE).expect("a test reads it");
            Planner::of_machine(run, Path::new("examples/machines/h200.json"), Some(machine))
        }
        (None, Some(_), None) => {
            out.text("measuring this machine (plan.machine or --machine FILE spares it)");
            let mut waiting = None;
            Planner::here(run, |device| {
                out.text(device);
                waiting = Some(Waiting::begin(Phase::Measuring.name()));
            })
        }
    }
}

/// What training in subspaces has to beat.
fn beside_exact(exact: &OfExact) -> String {
    let (Some(step), Some(tie)) = (exact.step_seconds, exact.steps_at_tie) else {
        return "exact training does not fit these budgets".to_owned();
    };
    let who = match tie > 1.0 {
        true => format!(
            "lsp is ahead as long as it needs less than {tie:.2} times the steps to the same loss"
        ),
        false => "lsp wins no time, only memory".to_owned(),
    };
    format!(
        "exact training under the same budgets: step {}; {who}",
        seconds(step)
    )
}

/// What twice and half as many directions would take, a line each.
fn other_compressions(all: &[OfCompression]) -> String {
    let line = |of: &OfCompression| {
        format!(
            "changes numbers: --set strategy.lsp.compression={}: {:.1} tokens/s\n",
            of.compression, of.tokens_per_second
        )
    };
    all.iter().map(line).collect()
}

/// What the gpu waits for in a step, where that is more than a little.
fn waits_line(waits: &[(Cause, Seconds)], step: f64, cuda: bool) -> Option<String> {
    let waited: f64 = waits.iter().map(|(_, s)| s.0).sum();
    if waited <= 0.005 * step {
        return None;
    }
    let each: Vec<String> = waits
        .iter()
        .filter(|(_, s)| s.0 > 0.001 * step)
        .map(|(cause, s)| format!("{} {}", waited_for(cause.name()), seconds(s.0)))
        .collect();
    Some(format!(
        "{} waits {} a step: {}",
        lane_of(LaneKind::Gpu, cuda),
        seconds(waited),
        each.join(", ")
    ))
}

/// What is to be said of the drives that a plan uses.
pub fn drives(plan: &Plan, machine: &Machine) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.tier(Tier::Disk).planned_bytes.0 > 0 && machine.disk.is_none() {
        lines.push("the machine's drives are not measured: a slow one is assumed".to_owned());
    }
    let (budget, direct) = (
        plan.tier(Tier::Device).budget_bytes,
        machine.disk.and_then(|d| d.direct),
    );
    if let Some(direct) = direct.filter(|_| plan.tier(Tier::Disk).planned_bytes.0 > 0)
        && !machine.may_register(budget)
    {
        lines.push(format!(
            "drives and GPU through the host: cuFile may register {} of the device, and a plan may take {budget}",
            direct.most_memory
        ));
    }
    let Some(wear) = Wear::of(plan, machine) else {
        return lines;
    };
    let share = 100.0 * wear.activation_bytes.0 as f64 / wear.step_bytes.0 as f64;
    lines.push(format!(
        "of what is written {share:.0}% is activations; {:.2} PB a year",
        wear.year_bytes.0 as f64 / 1e15
    ));
    if let (Some(days), Some(rated)) = (wear.rated_days, machine.disk.and_then(|d| d.rated_writes))
    {
        lines.push(format!(
            "the drives' rated writes, {}, last {days:.0} days of such steps",
            bytes(rated.0)
        ));
    }
    lines
}

/// Plans a curve, shows it and draws it.
fn draw(
    over: CurveOver,
    planner: &Planner<'_>,
    made: &PlanMade,
    files: &Pictures,
    out: Out,
) -> Result<Sweep, CliError> {
    let along = match over {
        CurveOver::Device => Along::Device,
        CurveOver::Batch => Along::Batch,
    };
    let waiting = Waiting::begin("planning the curve");
    let found = planner.curve(along, made, |done, of| waiting.at(done as u64, of as u64))?;
    drop(waiting);
    out.text(&text(&found));
    for (place, made) in files.iter().zip([svg, html]) {
        if let Some(place) = place {
            place.write(&made(&found))?;
        }
    }
    Ok(found)
}

/// Other plans, what more memory would buy, and what other numbers would.
fn outlook_text(outlook: &Outlook, step: f64, cuda: bool) -> String {
    let mut text = String::new();
    let change = |other: f64| match 100.0 * (other / step - 1.0) {
        percent if percent.abs() < 0.05 => "no faster".to_owned(),
        percent => format!("{percent:+.1}%"),
    };
    for a in &outlook.alternatives {
        let need: Vec<String> = Tier::ALL
            .iter()
            .zip(&a.bytes)
            .filter(|(_, b)| b.0 > 0)
            .map(|(t, b)| format!("{} {}", t.name(), bytes(b.0)))
            .collect();
        text += &format!(
            "or: {}: step {} ({}{}), ruled by {}; {}\n",
            a.kind,
            seconds(a.step_seconds.0),
            change(a.step_seconds.0),
            match a.why_not {
                None => "",
                Some(Why::Sure) =>
                    ", not chosen: with all state on the device a step takes about as long, and its time varies less",
                Some(Why::Writes) =>
                    ", not chosen: it writes more to the drives than plan.min_gain or budget.disk_writes allow",
                Some(Why::Unseen) => ", not chosen: the search ended before it was looked at",
            },
            lane_of(a.ruling_lane, cuda),
            need.join(", ")
        );
    }
    for m in &outlook.more {
        text += &format!(
            "with {} more {}: step {} ({})\n",
            bytes(m.bytes.0),
            m.tier.name(),
            seconds(m.step_seconds.0),
            change(m.step_seconds.0)
        );
    }
    for f in &outlook.faster {
        let link = match f.link {
            Link::HostToDevice => "from host to device",
            Link::DeviceToHost => "from device to host",
            Link::Disk => "of the drives",
        };
        text += &format!(
            "with {} more {link}: step {} ({})\n",
            f.more,
            seconds(f.step_seconds.0),
            change(f.step_seconds.0)
        );
    }
    for s in &outlook.suggestions {
        let key = match s.change {
            Change::ClipPrevious => "train.clip.mode=previous".to_owned(),
            Change::Accumulate(n) => format!("train.accumulate={n}"),
        };
        text += &format!(
            "changes numbers: --set {key}: {:.1} tokens/s\n",
            s.tokens_per_second
        );
    }
    text
}

/// `174.6 B`, `0.87 M`.
fn millions(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n => format!("{:.2} M", n / 1e6),
    }
}

/// The run that the arguments mean; flags are overrides of its keys.
pub fn run_of(args: &PlanArgs) -> Result<Run, CliError> {
    let mut sets = Vec::new();
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            sets.push(format!("{key}={value}"));
        }
    };
    set("train.micro_batch", args.micro_batch.map(|n| n.to_string()));
    set("train.seq", args.seq.map(|n| n.to_string()));
    set("train.accumulate", args.accumulate.map(|n| n.to_string()));
    set("gpus", args.gpus.map(|n| n.to_string()));
    set("budget.device", args.device_memory.clone());
    set("budget.host", args.host_memory.clone());
    set("budget.disk", disks(&texts("--disk", &args.disk)?)?);
    set(
        "precision",
        args.precision.map(|p| match p {
            Precision::Bf16 => "bf16".to_owned(),
            Precision::F32 => "f32".to_owned(),
        }),
    );
    set(
        "train.clip.mode",
        args.clip.map(|c| match c {
            Clip::Exact => "exact".to_owned(),
            Clip::Previous => "previous".to_owned(),
            Clip::None => "none".to_owned(),
        }),
    );
    // Last, so that advice can be pasted behind the flags.
    sets.extend(overrides(&args.sets)?);
    match (&args.file, &args.shape) {
        (Some(file), _) => Ok(Run::load(file, &sets)?),
        (None, shape) => {
            sets.insert(
                0,
                format!("model.shape={}", shape.as_deref().unwrap_or_default()),
            );
            // A shape has no data: one document a row.
            sets.insert(1, "data.packing=false".to_owned());
            let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
            Ok(Run::parse("", "the command line", &here, &sets)?)
        }
    }
}

/// `SIZE`, or any number of `DIR=SIZE`, as a value of `budget.disk`.
fn disks(given: &[String]) -> Result<Option<String>, CliError> {
    match given {
        [] => Ok(None),
        [size] if !size.contains('=') => Ok(Some(size.clone())),
        several => {
            let each: Result<Vec<String>, CliError> = several
                .iter()
                .map(|text| match text.rsplit_once('=') {
                    Some((dir, size)) if !dir.is_empty() => Ok(format!(
                        "{{dir: {}, size: {}}}",
                        quoted(Path::new(dir)),
                        Value::from(size)
                    )),
                    _ => Err(CliError::Usage {
                        what: format!("--disk {text}: several drives need a directory each"),
                        help: "--disk DIR=SIZE --disk DIR=SIZE",
                    }),
                })
                .collect();
            Ok(Some(format!("[{}]", each?.join(", "))))
        }
    }
}

/// Whose rates, and whether to trust them.
pub fn rates_line(machine: &Machine) -> String {
    let how = match machine.source {
        Source::Measured => "measured",
        Source::Published => "published, not measured: an estimate",
    };
    format!("rates: {} ({how}, {})", machine.name, machine.date)
}

/// A plan's figures as JSON.
fn describe(plan: &Plan, memory: &Memory, answer: &mut Value) {
    let p = &plan.prediction;
    let by_lane: Map<String, Value> = LaneKind::ALL
        .iter()
        .zip(&p.lanes)
        .map(|(kind, lane)| (kind.name().to_owned(), json!(lane)))
        .collect();
    let [up, down, read, written] = traffic(plan);
    answer["traffic"] = json!({"h2d": up, "d2h": down, "disk_read": read, "disk_write": written});
    answer["fits"] = json!(true);
    answer["hash"] = json!(format!("{:016x}", plan.hash()));
    answer["step_seconds"] = json!(p.step_seconds);
    answer["ruling_lane"] = json!(LaneKind::ALL[usize::from(p.ruling_lane)].name());
    answer["lanes"] = Value::Object(by_lane);
    answer["tiers"] = json!(memory);
    answer["disk_bytes_written_per_step"] = json!(p.disk_bytes_written);
    answer["disk_bytes_read_per_step"] = json!(p.disk_bytes_read);
    answer["choice"] = json!(plan.choice);
}
