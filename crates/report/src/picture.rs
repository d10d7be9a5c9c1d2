//! A planned step as pictures: what each lane does when, and what each tier holds meanwhile. SVG without a script.

use std::fmt::Write;

use crate::account::{LaneRow, PlanReport, TaskBox, TierRow};
use crate::chart::{Scale, escaped};
use crate::panel::{axes, begin, time_axis};
use crate::people::{bytes, count, seconds};
use crate::style;

/// Kinds of tasks, and contents of memory, that have a colour of their own. The last one's is that of all others.
pub const KINDS: [&str; style::COLOURS.len()] = {
    let mut names = [""; style::COLOURS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = style::COLOURS[i].0;
        i += 1;
    }
    names
};

/// What is drawn of a file that no run writes so: it has fewer.
const ROWS: usize = 16;
const BOXES: usize = 4000;
const CONTENTS: usize = 9;
const CHANGES: usize = 1000;

const WIDTH: f64 = 1150.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 30.0;
const ROW: f64 = 30.0;
const BOTTOM: f64 = 40.0;

/// Seconds of the step, if they can be drawn.
fn span(plan: &PlanReport) -> Option<f64> {
    let span = plan.seconds;
    (span > 1e-12 && span < 1e12).then_some(span)
}

/// A row a lane, a box a task; empty where there is nothing to draw.
#[must_use]
pub fn timeline(plan: &PlanReport) -> String {
    let lanes: Vec<&LaneRow> = plan.lanes.iter().take(ROWS).collect();
    let (Some(span), false) = (span(plan), lanes.is_empty()) else {
        return String::new();
    };
    let (unit, by) = time_unit(span);
    let height = TOP + ROW * lanes.len() as f64 + BOTTOM;
    let title = format!("A step as planned: {}", seconds(span));
    let words = format!("What each lane does in a step of {}", seconds(span));
    let mut text = begin(&title, &words, WIDTH, height);
    let x = Scale::exactly(0.0, span * by, [LEFT, WIDTH - RIGHT]);
    time_axis(&mut text, &x, height - BOTTOM, unit);
    for (i, lane) in lanes.iter().enumerate() {
        let top = TOP + ROW * i as f64;
        let busy: f64 = lane.boxes.iter().map(|b| b.end - b.start).sum();
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}<title>{} busy</title></text>\
             <line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\"/>",
            LEFT - 8.0,
            top + ROW / 2.0 + 4.0,
            escaped(&short(&lane.name)),
            seconds(busy),
            WIDTH - RIGHT,
            y = top + ROW,
        );
        for b in lane.boxes.iter().take(BOXES) {
            text.push_str(&drawn(b, &x, by, span, top));
        }
    }
    text.push_str("</svg>\n");
    let kinds = lanes.iter().flat_map(|l| &l.boxes).map(|b| known(&b.kind));
    let kinds: Vec<&str> = kinds.collect();
    let shown = |name: &&str| kinds.contains(name);
    legend(KINDS.into_iter().filter(shown)) + &text
}

/// A row a lane, as a file of its own: with its colours and its legend.
#[must_use]
pub fn alone(plan: &PlanReport) -> String {
    let all = timeline(plan);
    let Some(at) = all.find("<svg xmlns") else {
        return String::new();
    };
    let text = &all[at..];
    let boxes = || plan.lanes.iter().take(ROWS).flat_map(|l| &l.boxes);
    let shown = KINDS
        .into_iter()
        .filter(|k| boxes().any(|b| known(&b.kind) == *k));
    let mut legend = String::new();
    let mut x = WIDTH - RIGHT;
    for name in shown.collect::<Vec<_>>().into_iter().rev() {
        x -= 24.0 + 7.0 * name.len() as f64;
        let _ = write!(
            legend,
            "<rect x=\"{x}\" y=\"6\" width=\"12\" height=\"12\" rx=\"2\" style=\"fill:var(--{})\"/>\
             <text x=\"{}\" y=\"16\">{name}</text>",
            style::colour(name),
            x + 16.0,
        );
    }
    let begin = text.find("<desc>").unwrap_or(0);
    let (head, rest) = text.split_at(begin);
    let style = style::alone();
    format!(
        "{head}<style>{style}</style><rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n{legend}\n{rest}"
    )
}

/// The kind in whose colour a kind is drawn.
fn known(kind: &str) -> &str {
    match KINDS.contains(&kind) {
        true => kind,
        false => KINDS[KINDS.len() - 1],
    }
}

/// A box of the timeline, with its times as a title; nothing where it has no width.
fn drawn(b: &TaskBox, x: &Scale, by: f64, span: f64, top: f64) -> String {
    let within = |t: f64| x.place(t.clamp(0.0, span) * by);
    let (from, to) = (within(b.start), within(b.end));
    if from.is_nan() || to.is_nan() || from >= to {
        return String::new();
    }
    let more = match b.tasks {
        0 | 1 => String::new(),
        n => format!(" and {} more", count(n - 1)),
    };
    format!(
        "<rect x=\"{from:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{}\" style=\"fill:var(--{})\"><title>{}{more}: {} to {}</title></rect>\n",
        top + 4.0,
        (to - from).max(0.25),
        ROW - 8.0,
        style::colour(&b.kind),
        escaped(&short(&b.name)),
        seconds(b.start),
        seconds(b.end),
    )
}

/// The unit of a time axis, and how many of it make a second.
fn time_unit(span: f64) -> (&'static str, f64) {
    match span {
        s if s >= 2.0 => ("seconds", 1.0),
        s if s >= 2e-3 => ("milliseconds", 1e3),
        _ => ("microseconds", 1e6),
    }
}

fn short(text: &str) -> String {
    text.chars().take(120).collect()
}

/// Colours with their names.
fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::from("<ul class=\"legend\">");
    for name in names {
        let _ = write!(
            text,
            "<li><svg width=\"12\" height=\"12\" aria-hidden=\"true\"><rect width=\"12\" height=\"12\" rx=\"2\" style=\"fill:var(--{})\"/></svg> {}</li>",
            style::colour(name),
            escaped(name)
        );
    }
    text.push_str("</ul>\n");
    text
}

/// Contents of the tiers that hold something, as a legend; then a picture a tier.
#[must_use]
pub fn memory(plan: &PlanReport) -> (String, Vec<String>) {
    let tiers = || plan.tiers.iter().filter(|t| t.most() > 0).take(ROWS);
    let holds = |name: &&str| {
        tiers().any(|t| {
            let at = t.contents.iter().position(|c| c == name);
            let moves = |i| t.moving.iter().any(|m| bytes_of(&m.1, i) > 0);
            at.is_some_and(|i| bytes_of(&t.kept, i) > 0 || moves(i))
        })
    };
    let pictures = tiers().filter_map(|tier| area(tier, span(plan)?));
    (legend(KINDS.into_iter().filter(holds)), pictures.collect())
}

fn bytes_of(all: &[u64], content: usize) -> u64 {
    all.get(content).copied().unwrap_or(0)
}

/// A tier's bytes over the step, one content on the other: below what stays, above what comes and goes. Long because a
/// picture is drawn from its frame to its last line.
fn area(tier: &TierRow, span: f64) -> Option<String> {
    const WIDTH: f64 = 560.0;
    const LEFT: f64 = 54.0;
    const RIGHT: f64 = 12.0;
    const HEIGHT: f64 = 232.0;
    let all = tier.most().max(tier.planned_bytes);
    let units = [
        ("TiB", 40),
        ("GiB", 30),
        ("MiB", 20),
        ("KiB", 10),
        ("bytes", 0),
    ];
    let (unit, power) = units.into_iter().find(|(_, power)| all >= 1 << power)?;
    let by = (1u64 << power) as f64;
    let title = format!(
        "{}: {} at most, {} reserved, budget {}",
        short(&tier.name),
        bytes(tier.most()),
        bytes(tier.planned_bytes),
        match tier.budget_bytes {
            n if n >= 1 << 60 => "none".to_owned(),
            n => bytes(n),
        }
    );
    let mut text = begin(&title, &title, WIDTH, HEIGHT);
    let (time, scale) = time_unit(span);
    let x = Scale::exactly(0.0, span * scale, [LEFT, WIDTH - RIGHT]);
    let y = Scale::to(all as f64 / by, [HEIGHT - BOTTOM, TOP]);
    axes(&mut text, &x, &y, &format!("{unit} over the step's {time}"));
    let none = [(0.0, Vec::new())];
    let moving = match &tier.moving[..] {
        [] => &none[..],
        all => &all[..all.len().min(CHANGES)],
    };
    let mut below = vec![0.0; moving.len()];
    let mut layer = |held: &dyn Fn(&[u64]) -> u64, kind: &str, opacity: f64, word: &str| {
        let each: Vec<u64> = moving.iter().map(|(_, m)| held(m)).collect();
        let highest = each.iter().copied().max().unwrap_or(0);
        if highest == 0 {
            return;
        }
        let higher = below.iter().zip(&each);
        let above: Vec<f64> = higher.map(|(a, &b)| a + b as f64 / by).collect();
        let ends = |i: usize| moving.get(i + 1).map_or(span, |m| m.0);
        let mut path: Vec<String> = Vec::new();
        let mut corner = |at: f64, value: f64| {
            let at = x.place(at.clamp(0.0, span) * scale);
            path.push(format!("{at:.1},{:.1}", y.place(value)));
        };
        for (i, &value) in above.iter().enumerate() {
            corner(moving[i].0, value);
            corner(ends(i), value);
        }
        for (i, &value) in below.iter().enumerate().rev() {
            corner(ends(i), value);
            corner(moving[i].0, value);
        }
        path.dedup();
        let _ = writeln!(
            text,
            "<polygon points=\"{}\" style=\"fill:var(--{});fill-opacity:{opacity}\"><title>{} {word}: {} at most</title></polygon>",
            path.join(" "),
            style::colour(kind),
            escaped(&short(kind)),
            bytes(highest)
        );
        below = above;
    };
    for (i, content) in tier.contents.iter().enumerate().take(CONTENTS) {
        layer(&|_| bytes_of(&tier.kept, i), content, 1.0, "that stay");
    }
    for (i, content) in tier.contents.iter().enumerate().take(CONTENTS) {
        layer(&|m| bytes_of(m, i), content, 0.62, "in motion");
    }
    let reserved = y.place(tier.planned_bytes as f64 / by);
    let _ = writeln!(
        text,
        "<line class=\"limit\" x1=\"{LEFT}\" y1=\"{reserved:.1}\" x2=\"{}\" y2=\"{reserved:.1}\"><title>reserved: {}</title></line>",
        WIDTH - RIGHT,
        bytes(tier.planned_bytes)
    );
    text.push_str("</svg>\n");
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> PlanReport {
        let task = |start, end, kind: &str, name: &str, tasks| TaskBox {
            start,
            end,
            kind: kind.to_owned(),
            name: name.to_owned(),
            tasks,
        };
        PlanReport {
            seconds: 0.5,
            lanes: vec![LaneRow {
                name: "gpu".to_owned(),
                boxes: vec![
                    task(0.0, 0.25, "forward", "block <1>", 1),
                    task(0.25, 0.5, "unheard of", "more", 12),
                ],
            }],
            tiers: vec![TierRow {
                name: "device".to_owned(),
                planned_bytes: 100 << 20,
                budget_bytes: 128 << 20,
                contents: vec!["weights".to_owned(), "activations".to_owned()],
                kept: vec![40 << 20, 0],
                moving: vec![(0.0, vec![0, 10 << 20]), (0.25, vec![8 << 20, 52 << 20])],
            }],
            ..PlanReport::default()
        }
    }

    /// Numbers of an attribute.
    fn numbers(text: &str, name: &str) -> Vec<f64> {
        let name = format!(" {name}=\"");
        let all = text.split(&name).skip(1);
        all.map(|t| t.split('"').next().unwrap().parse().unwrap())
            .collect()
    }

    #[test]
    fn boxes_lie_where_their_times_are() {
        let text = timeline(&plan());
        let boxes: String = text.lines().filter(|l| l.starts_with("<rect")).collect();
        let (x, width) = (numbers(&boxes, "x"), numbers(&boxes, "width"));
        let half = (WIDTH - LEFT - RIGHT) / 2.0;
        assert_eq!((x[0], width[0]), (LEFT, half));
        assert_eq!((x[1], width[1]), (LEFT + half, half));
        assert!(text.contains("block &lt;1&gt;: 0.0 µs to 250.0 ms"));
        assert!(text.contains("more and 11 more: 250.0 ms to 500.0 ms"));
        assert!(text.contains("</svg> forward") && text.contains("</svg> inputs and scratch"));
        assert!(!text.contains("</svg> backward"));
    }

    #[test]
    fn a_picture_alone_has_its_colours_and_its_legend() {
        let text = alone(&plan());
        assert!(
            text.starts_with("<svg ") && text.ends_with("</svg>\n"),
            "{text}"
        );
        assert_eq!(text.matches("<svg").count(), 1, "no list of a page");
        assert!(text.contains("--forward:#") && text.contains(">inputs and scratch</text>"));
        assert!(!text.contains(">backward</text>"), "nothing is drawn in it");
        // The same boxes as on a page.
        let boxes = |text: &str| text.matches("<title>").count();
        assert_eq!(boxes(&text), boxes(&timeline(&plan())));
        assert!(alone(&PlanReport::default()).is_empty());
    }

    #[test]
    fn areas_are_as_high_as_their_bytes() {
        let (legend, all) = memory(&plan());
        assert!(legend.contains("weights") && legend.contains("activations"));
        assert!(!legend.contains("gradients"));
        assert!(all[0].contains("device: 100.0 MiB at most, 100.0 MiB reserved, budget 128.0 MiB"));
        let polygons = all[0].split("<polygon points=\"").skip(1);
        let heights: Vec<[f64; 2]> = polygons
            .map(|p| {
                let points = p.split('"').next().unwrap().split(' ');
                let y = points.map(|p| p.split(',').nth(1).unwrap().parse().unwrap());
                let y: Vec<f64> = y.collect();
                let by = |of: fn(f64, f64) -> f64, from| y.iter().copied().fold(from, of);
                [by(f64::min, f64::INFINITY), by(f64::max, 0.0)]
            })
            .collect();
        // 100 MiB of 100: from the axis to the top.
        let at = |mib: f64| 192.0 - (192.0 - TOP) * mib / 100.0;
        let near =
            |a: [f64; 2], b: [f64; 2]| (a[0] - b[0]).abs() < 0.1 && (a[1] - b[1]).abs() < 0.1;
        assert!(near(heights[0], [at(40.0), at(0.0)]), "{heights:?}");
        assert!(near(heights[1], [at(48.0), at(40.0)]), "{heights:?}");
        assert!(near(heights[2], [at(100.0), at(40.0)]), "{heights:?}");
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        let with = |seconds| PlanReport { seconds, ..plan() };
        for seconds in [0.0, -1.0, f64::NAN, 1e300] {
            assert!(timeline(&with(seconds)).is_empty() && memory(&with(seconds)).1.is_empty());
        }
        let mut odd = plan();
        odd.lanes[0].boxes[0].end = 1e308;
        odd.tiers[0].kept = vec![u64::MAX; 40];
        odd.tiers[0].moving[1] = (-1e308, vec![u64::MAX; 40]);
        let all = timeline(&odd) + &memory(&odd).1.concat();
        assert!(!all.contains("NaN") && !all.contains("inf"), "{all}");
    }
}
