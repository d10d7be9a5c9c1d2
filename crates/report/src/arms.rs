//! Runs of one comparison held against each other: which loss each had reached after how many steps and seconds.
//!
//! Each run, called an arm, has made as many steps from the same start on the same batches. What counts is the
//! evaluation loss where there are evaluations, else the loss of steps, as a mean over each stretch between two rows of
//! the table. Seconds are those of steps, and before the first one those in which an arm learned its projectors;
//! loading, planning and evaluations are in none.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use lowtide_files::FileError;

use crate::chart::escaped;
use crate::error::ReportError;
use crate::page::page_of;
use crate::panel::{Series, legend, lines_over};
use crate::people::{count, seconds};
use crate::run::{Evaluation, METRICS, RunReport, Step, lines};
use crate::text::{self, in_columns, loss};

/// Points of an arm without evaluations.
const ROWS: u64 = 10;
/// Rows of the table, at most.
const SHOWN: usize = 25;

/// Where an arm was after a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// After which step; 0 is before the first.
    pub step: u64,
    /// Seconds by then.
    pub seconds: f64,
    /// Mean loss of the steps since the point before.
    pub loss: Option<f64>,
    /// Loss of the evaluation there.
    pub eval_loss: Option<f64>,
}

/// A run of the comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Arm {
    /// Its name: the last part of its directory.
    pub name: String,
    /// Median seconds of a step.
    pub step_seconds: Option<f64>,
    /// Seconds in which it learned its projectors, where it did.
    pub learning_seconds: Option<f64>,
    /// Where it was after each evaluation, or, without any, after each tenth of its steps.
    pub points: Vec<Point>,
}

/// The lowest loss that two arms have both reached, and what each took to it. Between two points a loss is taken to
/// fall in a line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tie {
    /// The first arm's name, and the other one's, in this order in each pair below.
    pub arms: [String; 2],
    /// Whether the loss is that of evaluations.
    pub evaluated: bool,
    /// The lowest loss that both have reached.
    pub loss: f64,
    /// The lowest of each.
    pub lowest: [f64; 2],
    /// Steps of each to that loss.
    pub steps: [f64; 2],
    /// Seconds of each to that loss.
    pub seconds: [f64; 2],
    /// How many times the first arm's steps the other one took.
    pub times_the_steps: f64,
    /// How many times the first arm's seconds the other one took.
    pub times_the_seconds: f64,
}

/// Arms side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Arms {
    /// Each arm in the order of its directory.
    pub arms: Vec<Arm>,
    /// Of the first arm with each other one; none where either never had less loss than at its begin.
    pub ties: Vec<Option<Tie>>,
    /// The runs themselves.
    pub runs: Vec<RunReport>,
}

impl Arms {
    /// Reads the output directories of arms, the one that the others are held against first.
    ///
    /// # Errors
    /// As [`RunReport::read`].
    pub fn read(dirs: &[PathBuf]) -> Result<Self, ReportError> {
        let runs: Vec<_> = dirs.iter().map(|dir| RunReport::read(dir)).collect();
        let runs = runs.into_iter().collect::<Result<Vec<_>, _>>()?;
        let arms = runs.iter().map(Arm::of).collect::<Result<Vec<_>, _>>()?;
        let others = arms.iter().skip(1);
        let ties = others.map(|other| tie(&arms[0], other)).collect();
        Ok(Self { arms, ties, runs })
    }

    /// As text: losses by step, facts and settings that differ, and how the others compare with the first arm.
    #[must_use]
    pub fn text(&self) -> String {
        let mut rows = vec![self.head()];
        rows.extend(self.rows());
        let table = in_columns(rows, 3 * self.arms.len());
        let said = self.said().join("\n");
        format!("{table}\n\n{}\n\n{said}", text::compare(&self.runs))
    }

    /// As one page that opens without a network.
    #[must_use]
    pub fn html(&self) -> String {
        let mut above = String::from("<div class=\"card\">\n");
        for line in self.said() {
            let _ = writeln!(above, "<p>{}</p>", escaped(&line));
        }
        above.push_str("</div>\n<div class=\"card\"><table id=\"arms\">\n");
        for (name, cells) in [self.head()].into_iter().chain(self.rows()) {
            let _ = write!(above, "<tr><td>{}</td>", escaped(&name));
            for cell in cells {
                let cell = cell.unwrap_or_default();
                let _ = write!(above, "<td class=\"n\">{}</td>", escaped(&cell));
            }
            above.push_str("</tr>\n");
        }
        above.push_str("</table></div>\n");
        let names: Vec<String> = self.arms.iter().map(|a| a.name.clone()).collect();
        above.push_str(&legend(&names));
        above.push_str("<div class=\"two\">\n");
        for (title, of) in [
            (
                "loss on the evaluation data by time",
                (|p| p.eval_loss) as fn(&Point) -> _,
            ),
            ("loss of steps by time", |p| p.loss),
        ] {
            let series = self.arms.iter().map(|arm| Series {
                name: arm.name.clone(),
                points: arm
                    .points
                    .iter()
                    .filter_map(|p| Some((p.seconds, of(p)?)))
                    .collect(),
                dots: true,
                ..Series::default()
            });
            let picture = lines_over("seconds", title, &series.collect::<Vec<_>>(), &[]);
            if !picture.is_empty() {
                let _ = write!(above, "<div class=\"card\">{picture}</div>");
            }
        }
        above.push_str("</div>\n");
        let title = format!(
            "{}: {}",
            names.join(" and "),
            self.runs.first().map_or_else(String::new, RunReport::model)
        );
        page_of(&self.runs, &title, &above)
    }

    fn head(&self) -> (String, Vec<Option<String>>) {
        let each = self.arms.iter().flat_map(|arm| {
            let of = |what: &str| Some(format!("{} {what}", arm.name));
            [of("loss"), of("eval"), of("time")]
        });
        ("after step".to_owned(), each.collect())
    }

    /// Where each arm was, a row a step.
    fn rows(&self) -> Vec<(String, Vec<Option<String>>)> {
        let mut steps: Vec<u64> = self
            .arms
            .iter()
            .flat_map(|a| a.points.iter().map(|p| p.step))
            .collect();
        steps.sort_unstable();
        steps.dedup();
        // As many as can be looked over, the last one among them.
        let each = steps.len().div_ceil(SHOWN).max(1);
        let mut nth = steps.len();
        steps.retain(|_| {
            nth -= 1;
            nth.is_multiple_of(each)
        });
        let row = |step: u64| {
            let cells = self.arms.iter().flat_map(|arm| {
                let point = arm.points.iter().find(|p| p.step == step);
                [
                    point.and_then(|p| p.loss).map(loss),
                    point.and_then(|p| p.eval_loss).map(loss),
                    point.map(|p| time(p.seconds)),
                ]
            });
            (count(step), cells.collect())
        };
        steps.into_iter().map(row).collect()
    }

    /// How each other arm compares with the first one, in words.
    fn said(&self) -> Vec<String> {
        let mut all = Vec::new();
        let Some((first, others)) = self.arms.split_first() else {
            return all;
        };
        for (other, tie) in others.iter().zip(&self.ties) {
            let names = [&*first.name, &*other.name];
            if let (Some(a), Some(b)) = (first.step_seconds, other.step_seconds) {
                let learned = other
                    .learning_seconds
                    .map(|s| format!(", {} to learn projectors not counted", seconds(s)));
                all.push(format!(
                    "{}: a step takes {}, {}'s {}: ahead while it needs less than {:.2} times the steps{}",
                    names[1],
                    seconds(b),
                    names[0],
                    seconds(a),
                    a / b,
                    learned.unwrap_or_default()
                ));
            }
            all.push(match tie {
                Some(tie) => tie.said(),
                None => format!(
                    "{} and {}: one of them had no less loss than at its begin",
                    names[0], names[1]
                ),
            });
        }
        all
    }
}

impl Tie {
    fn said(&self) -> String {
        let [first, other] = &self.arms;
        let of = match self.evaluated {
            true => "evaluation loss",
            false => "loss",
        };
        let further = match self.lowest {
            [a, b] if a < b => format!("; the lowest of {first} is {}", loss(a)),
            [a, b] if b < a => format!("; the lowest of {other} is {}", loss(b)),
            _ => String::new(),
        };
        let ahead = match self.times_the_seconds {
            t if t < 1.0 => other,
            _ => first,
        };
        format!(
            "{of} {}, the lowest that both reached: {first} after {:.0} steps and {}, {other} after {:.0} and {}, {:.2} \
             times the steps and {:.2} times the time: {ahead} is ahead{further}",
            loss(self.loss),
            self.steps[0],
            seconds(self.seconds[0]),
            self.steps[1],
            seconds(self.seconds[1]),
            self.times_the_steps,
            self.times_the_seconds,
        )
    }
}

impl Arm {
    fn of(run: &RunReport) -> Result<Self, ReportError> {
        let learning_seconds = run.report["learning_seconds"].as_f64();
        let mut walk = Walk {
            seconds: learning_seconds.unwrap_or(0.0),
            ..Walk::default()
        };
        let there = lines(&run.dir.join(METRICS), |line| {
            let line: Value = serde_json::from_slice(line)?;
            if line.get("eval_loss").is_some() {
                walk.evaluation(serde_json::from_value(line)?);
            } else if line.get("steps").is_some() {
                walk.step(&serde_json::from_value(line)?);
            }
            Ok(())
        })?;
        if !there {
            let path = run.dir.join(METRICS);
            return Err(FileError::Missing { path }.into());
        }
        Ok(Self {
            name: run.name(),
            step_seconds: run.figures.step_seconds,
            learning_seconds,
            points: walk.points,
        })
    }

    /// The loss that counts at each point that has one, with its step and seconds.
    fn curve(&self, evaluated: bool) -> Vec<(f64, f64, f64)> {
        let of = |p: &Point| {
            let loss = if evaluated { p.eval_loss } else { p.loss };
            Some((loss?, p.step as f64, p.seconds))
        };
        self.points.iter().filter_map(of).collect()
    }
}

/// Metrics, line by line: a point for each evaluation, and without any for each tenth of the steps.
#[derive(Default)]
struct Walk {
    points: Vec<Point>,
    seconds: f64,
    /// Losses since the last point.
    sum: f64,
    losses: u32,
    evaluated: bool,
}

impl Walk {
    fn step(&mut self, s: &Step) {
        self.seconds += s.seconds.unwrap_or(0.0);
        self.sum += s.loss.unwrap_or(f64::NAN);
        self.losses += 1;
        let tenths = |step: u64| u128::from(step) * u128::from(ROWS) / u128::from(s.steps.max(1));
        if !self.evaluated && tenths(s.step) > tenths(s.step.saturating_sub(1)) {
            self.point(s.step, None);
        }
    }

    fn evaluation(&mut self, e: Evaluation) {
        self.evaluated = true;
        self.point(e.step, Some(e.eval_loss));
    }

    fn point(&mut self, step: u64, eval_loss: Option<f64>) {
        let mean = std::mem::take(&mut self.sum) / f64::from(std::mem::take(&mut self.losses));
        self.points.push(Point {
            step,
            seconds: self.seconds,
            loss: Some(mean).filter(|loss| loss.is_finite()),
            eval_loss,
        });
    }
}

/// What two arms took to the lowest loss that both reached.
fn tie(first: &Arm, other: &Arm) -> Option<Tie> {
    let evaluated = [first, other].iter().all(|arm| arm.curve(true).len() > 1);
    let curves = [first, other].map(|arm| arm.curve(evaluated));
    let lowest = curves
        .each_ref()
        .map(|c| c.iter().map(|p| p.0).fold(f64::INFINITY, f64::min));
    let level = lowest[0].max(lowest[1]);
    let [a, b] = curves.each_ref().map(|c| reached(c, level));
    let (a, b) = (a?, b?);
    Some(Tie {
        arms: [first.name.clone(), other.name.clone()],
        evaluated,
        loss: level,
        lowest,
        steps: [a.0, b.0],
        seconds: [a.1, b.1],
        times_the_steps: b.0 / a.0,
        times_the_seconds: b.1 / a.1,
    })
}

/// After how many steps and seconds a curve first was as low as this; `None` where it never was, or at its begin.
fn reached(curve: &[(f64, f64, f64)], level: f64) -> Option<(f64, f64)> {
    let i = curve.iter().position(|p| p.0 <= level)?;
    let (below, above) = (curve[i], curve.get(i.checked_sub(1)?)?);
    let share = (above.0 - level) / (above.0 - below.0);
    let between = |from: f64, to: f64| from + share * (to - from);
    Some((between(above.1, below.1), between(above.2, below.2)))
}

/// Seconds, which may be none at all.
fn time(s: f64) -> String {
    match s > 0.0 {
        true => seconds(s),
        false => "0 s".to_owned(),
    }
}
