//! A run's plans over device memory or over the size of a micro-batch, by what becomes of saved tensors
//! (`lowtide plan --curve`): as a value, a table, a picture and a page.

use std::fmt::Write;

use serde::Serialize;

use crate::chart::{LEFT, RIGHT, Scale, WIDTH, axes, escaped};
use crate::people::{bytes, seconds};
use crate::table::{Column, Table};

/// What changes along a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Along {
    /// Device memory allowed. The numbers that are trained stay the same.
    Device,
    /// Sequences of a micro-batch, device memory as the run has it. Other batches are other numbers.
    Batch,
}

/// What may become of saved tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Each stays, moves or is computed again, whichever makes the step shorter.
    Auto,
    /// None moves: what does not stay is computed again.
    Recompute,
    /// None is computed again: what does not stay moves.
    Offload,
    /// Every saved tensor stays on the device.
    Keep,
}

/// Those that a sweep looks at, in the order in which they are listed.
pub const STRATEGIES: [Strategy; 3] = [Strategy::Recompute, Strategy::Offload, Strategy::Auto];

/// A plan of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// What may become of saved tensors.
    pub activations: Strategy,
    /// Bytes of device memory allowed to the process.
    pub allowed: u64,
    /// Sequences of a micro-batch.
    pub micro_batch: u32,
    /// Bytes of device memory planned for the arena.
    pub device: u64,
    /// Bytes of host memory planned for the arena.
    pub host: u64,
    /// The most bytes of the device that local tensors take at once.
    pub activation_peak: u64,
    /// Time of a step.
    pub step_seconds: f64,
    /// Tokens of a step, padding included, over that.
    pub tokens_per_second: f64,
    /// Bytes written to the drives a step.
    pub disk_written: u64,
    /// Hash of the plan, as 16 hexadecimal digits: two points with the same one have the same plan.
    pub hash: String,
}

/// Points for each strategy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sweep {
    /// What changes along it.
    pub along: Along,
    /// The name of the model.
    pub model: String,
    /// Name of the machine whose rates the plans were made with.
    pub machine: String,
    /// Tokens of a sequence.
    pub seq: u32,
    /// Plans that fit, by strategy in the order of [`STRATEGIES`], along the axis.
    pub points: Vec<Point>,
    /// Plans that do not fit: strategy, bytes of device memory, micro-batch.
    pub refused: Vec<(Strategy, u64, u32)>,
    /// Plans that were searched for: points that repeat each other take one.
    pub searched: usize,
    /// The run's own plan.
    pub own: Point,
}

/// A picture's height without the panel of writes and the last line.
const HEIGHT: f64 = 430.0;
/// The last line: whose rates.
const FOOT: f64 = 22.0;
/// Characters that it has room for.
const NAME: usize = 110;
/// Around the picture's upper panel.
const TOP: f64 = 64.0;
const BOTTOM: f64 = 54.0;
/// The panel of writes to the drives.
const WRITES: f64 = 110.0;

/// How a strategy is drawn: name, colour, dash pattern.
fn style(of: Strategy) -> (&'static str, &'static str, &'static str) {
    match of {
        Strategy::Recompute => ("recompute", "#b35900", "7 4"),
        Strategy::Offload => ("offload", "#1f6fb2", "2 4"),
        Strategy::Keep => ("keep", "#666666", "10 3 2 3"),
        Strategy::Auto => ("auto", "#1a1a1a", "none"),
    }
}

/// A point's place on the axis, in GiB or sequences.
fn along(curve: &Sweep, p: &Point) -> f64 {
    match curve.along {
        Along::Device => gib(p.allowed),
        Along::Batch => gib(p.activation_peak),
    }
}

fn gib(n: u64) -> f64 {
    n as f64 / f64::from(1 << 30)
}

/// Columns with their heads on a terminal and on a page, and characters on a terminal; the last stands on a page alone.
const COLUMNS: [(&str, &str, usize); 9] = [
    ("activations", "activations", 11),
    ("micro-batch", "micro-batch", 12),
    ("allowed", "device allowed", 12),
    ("activation peak", "activation peak", 16),
    ("device", "device planned", 12),
    ("host", "host planned", 12),
    ("step", "step", 13),
    ("tokens/s", "tokens/s", 13),
    ("", "written a step", 0),
];

/// All points, one a row, and those that do not fit; of so many columns.
fn rows(curve: &Sweep, columns: &[(&str, usize)]) -> Table {
    let column = |(i, &(head, wide)): (usize, &(&str, usize))| match i {
        0 => Column::left(head).wide(wide),
        _ => Column::right(head).wide(wide),
    };
    let mut table = Table::new(columns.iter().enumerate().map(column));
    for p in &curve.points {
        let cells = [
            style(p.activations).0.to_owned(),
            p.micro_batch.to_string(),
            bytes(p.allowed),
            bytes(p.activation_peak),
            bytes(p.device),
            bytes(p.host),
            seconds(p.step_seconds),
            format!("{:.1}", p.tokens_per_second),
            bytes(p.disk_written),
        ];
        table.row(cells.into_iter().take(columns.len()));
    }
    for &(activations, device, micro_batch) in &curve.refused {
        let name = style(activations).0.to_owned();
        let cells = [name, micro_batch.to_string(), bytes(device)];
        table.remarked(cells, "does not fit");
    }
    table
}

/// The points for a terminal, one a line.
#[must_use]
pub fn text(curve: &Sweep) -> String {
    let shown = COLUMNS.iter().filter(|c| c.2 > 0);
    rows(curve, &shown.map(|c| (c.0, c.2)).collect::<Vec<_>>()).text()
}

/// A whole page: the picture and the table, without a script.
#[must_use]
pub fn html(curve: &Sweep) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
         table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}}\
         td:first-child,th:first-child{{text-align:left}}svg{{max-width:100%;height:auto}}</style>\n\
         <h1>{title}</h1>\n{picture}\n{table}\n\
         <p>Every row is a plan that was drafted, simulated and checked. Times are predicted with the rates of {machine}.</p>\n</html>\n",
        machine = escaped(&curve.machine),
        title = escaped(&title(curve)),
        picture = svg(curve),
        table = rows(curve, &COLUMNS.map(|c| (c.1, 0))).html(),
    )
}

fn title(curve: &Sweep) -> String {
    let what = match curve.along {
        Along::Device => "over device memory",
        Along::Batch => "over the micro-batch",
    };
    format!("{}: saved tensors {what}", curve.model)
}

/// The picture. Equal values give equal bytes.
#[must_use]
pub fn svg(curve: &Sweep) -> String {
    let writes = curve.points.iter().any(|p| p.disk_written > 0);
    let height = HEIGHT + FOOT + if writes { WRITES } else { 0.0 };
    let all = || curve.points.iter().chain([&curve.own]);
    let most = |of: &dyn Fn(&Point) -> f64| all().map(of).fold(0.0, f64::max);
    let x = Scale::to(most(&|p| along(curve, p)), [LEFT, WIDTH - RIGHT]);
    let y = Scale::to(most(&|p| p.tokens_per_second), [HEIGHT - BOTTOM, TOP]);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-labelledby=\"title desc\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <title id=\"title\">{}</title>\n<desc id=\"desc\">{}</desc>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"600\">{}</text>\n",
        escaped(&title(curve)),
        escaped(&in_words(curve)),
        escaped(&title(curve)),
    );
    let name = match curve.along {
        Along::Device => "device memory allowed, GiB",
        Along::Batch => {
            "peak of activations on the device, GiB (number: sequences of a micro-batch)"
        }
    };
    axes(&mut text, &x, &y, name, "tokens/s");
    for (i, strategy) in STRATEGIES.into_iter().enumerate() {
        let points: Vec<&Point> = curve
            .points
            .iter()
            .filter(|p| p.activations == strategy)
            .collect();
        let place = |p: &&Point| (x.place(along(curve, p)), y.place(p.tokens_per_second));
        line(&mut text, strategy, points.iter().map(place));
        if curve.along == Along::Batch {
            for p in &points {
                let (at, of) = place(p);
                let _ = writeln!(
                    text,
                    "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\" fill=\"{}\">{}</text>",
                    at + 6.0,
                    of + 14.0,
                    style(strategy).1,
                    p.micro_batch
                );
            }
        }
        legend(&mut text, strategy, LEFT + 110.0 * i as f64);
    }
    let (at, of) = (
        x.place(along(curve, &curve.own)),
        y.place(curve.own.tokens_per_second),
    );
    let _ = writeln!(
        text,
        "<circle cx=\"{at:.1}\" cy=\"{of:.1}\" r=\"7\" fill=\"none\" stroke=\"#c01c28\" stroke-width=\"2\"/>\n\
         <circle cx=\"{:.1}\" cy=\"46\" r=\"6\" fill=\"none\" stroke=\"#c01c28\" stroke-width=\"2\"/>\
         <text x=\"{:.1}\" y=\"50\">this plan</text>",
        LEFT + 340.0,
        LEFT + 352.0,
    );
    if writes {
        panel(&mut text, curve, &x);
    }
    let machine: String = curve.machine.chars().take(NAME).collect();
    let _ = write!(
        text,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"11\" fill=\"#666666\">predicted with the rates of {}</text>\n</svg>",
        height - 8.0,
        escaped(&machine)
    );
    text
}

/// Bytes written a step, below.
fn panel(text: &mut String, curve: &Sweep, x: &Scale) {
    let most = curve.points.iter().map(|p| gib(p.disk_written));
    let y = Scale::to(
        most.fold(0.0, f64::max),
        [HEIGHT + WRITES - 34.0, HEIGHT + 6.0],
    );
    axes(text, x, &y, "", "GiB written");
    for strategy in STRATEGIES {
        let points = curve.points.iter().filter(|p| p.activations == strategy);
        let place = |p: &Point| (x.place(along(curve, p)), y.place(gib(p.disk_written)));
        line(text, strategy, points.map(place));
    }
}

fn line(text: &mut String, strategy: Strategy, points: impl Iterator<Item = (f64, f64)>) {
    let (_, colour, dash) = style(strategy);
    let places: Vec<(f64, f64)> = points.collect();
    let each: Vec<String> = places
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let _ = writeln!(
        text,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>",
        each.join(" ")
    );
    for (x, y) in places {
        let _ = writeln!(
            text,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
        );
    }
}

fn legend(text: &mut String, strategy: Strategy, x: f64) {
    let (name, colour, dash) = style(strategy);
    let _ = writeln!(
        text,
        "<line x1=\"{x}\" y1=\"46\" x2=\"{:.1}\" y2=\"46\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>\
         <text x=\"{:.1}\" y=\"50\">{name}</text>",
        x + 28.0,
        x + 34.0
    );
}

/// What the picture shows, for those who do not see it.
fn in_words(curve: &Sweep) -> String {
    let best = |strategy: Strategy| {
        let of = curve.points.iter().filter(|p| p.activations == strategy);
        let best = of.max_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second));
        best.map(|p| {
            format!(
                "{} reaches {:.0} tokens/s with {} of device memory",
                style(strategy).0,
                p.tokens_per_second,
                bytes(p.allowed)
            )
        })
    };
    let each: Vec<String> = STRATEGIES.into_iter().filter_map(best).collect();
    format!(
        "{}. This plan: {:.0} tokens/s with {}.",
        each.join("; "),
        curve.own.tokens_per_second,
        bytes(curve.own.allowed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(activations: Strategy, gib: u64, tokens_per_second: f64, written: u64) -> Point {
        Point {
            activations,
            allowed: gib << 30,
            micro_batch: gib as u32,
            device: gib << 30,
            host: 3 << 30,
            activation_peak: gib << 29,
            step_seconds: 1000.0 / tokens_per_second,
            tokens_per_second,
            disk_written: written << 30,
            hash: "0".to_owned(),
        }
    }

    fn sample(along: Along, written: u64) -> Sweep {
        let of = |a, rates: [f64; 3]| {
            let each = [6, 12, 24].into_iter().zip(rates);
            each.map(move |(gib, rate)| point(a, gib, rate, written * gib))
        };
        Sweep {
            along,
            model: "model <&\" name".to_owned(),
            machine: "test".to_owned(),
            seq: 1024,
            points: of(Strategy::Recompute, [9000.0, 11_000.0, 12_000.0])
                .chain(of(Strategy::Offload, [7000.0, 10_500.0, 12_500.0]))
                .chain(of(Strategy::Auto, [9500.0, 12_000.0, 13_000.0]))
                .collect(),
            searched: 0,
            refused: vec![(Strategy::Offload, 3 << 30, 8)],
            own: point(Strategy::Auto, 12, 12_000.0, 0),
        }
    }

    /// The pictures as they were looked at. `BLESS=1` writes them anew.
    #[test]
    fn pictures_are_these() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sweep");
        for (name, curve) in [
            ("device.svg", sample(Along::Device, 0)),
            ("batch.svg", sample(Along::Batch, 1)),
        ] {
            let (path, drawn) = (folder.join(name), svg(&curve) + "\n");
            if std::env::var_os("BLESS").is_some() {
                std::fs::create_dir_all(&folder).expect("a folder");
                std::fs::write(&path, &drawn).expect("a file");
            }
            let want = std::fs::read_to_string(&path).expect("a picture");
            assert_eq!(drawn, want, "{name}");
        }
    }

    #[test]
    fn a_page_has_every_plan_and_no_markup_of_a_name() {
        let page = html(&sample(Along::Device, 0));
        assert_eq!(page.matches("<tr>").count(), 1 + 9 + 1);
        assert!(page.contains("does not fit"));
        assert!(page.contains("model &lt;&amp;&quot; name"));
        assert!(!page.contains("<&"));
        assert!(!page.contains("<script"));
    }
}
