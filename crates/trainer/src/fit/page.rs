//! The run as a page, `report.html`, and `report.json`, from which and from the metrics it is drawn: written between
//! two steps where something is saved or evaluated, and at the end.

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lowtide_report::account::{self, Account, PlanReport, Process};
use lowtide_report::outcome::TrainReport;
use lowtide_report::{PAGE, REPORT, RunReport, State, page};

use super::Fit;
use super::summary::Ends;
use crate::error::TrainError;
use crate::output::folder::{Folder, Found};
use crate::picture::plan_report;
use crate::planning::Planned;
use crate::tally::Tally;

/// Pages take at most one part in so many of a run's time: a page is left out rather than more.
const PART: u32 = 100;
/// Processes that are listed, at most: the newest.
const PROCESSES: usize = 1000;

/// What a page has that stays the same.
pub(super) struct Page {
    after_step: u64,
    processes: Vec<Process>,
    plan: PlanReport,
    /// When the last one was written, and how long that took.
    last: Option<(Instant, Duration)>,
    /// The last one could not be written, and the user has been warned of it.
    failing: bool,
}

impl Page {
    /// Whether one may be written.
    fn is_due(&self, now: Instant) -> bool {
        self.last
            .is_none_or(|(at, took)| now.saturating_duration_since(at) >= took * PART)
    }
}

/// The processes of a run, ending with this one; earlier ones that began at its first step or later are dropped,
/// because it makes their steps again.
fn with(earlier: Vec<Process>, this: Process) -> Vec<Process> {
    let mut all = earlier;
    all.retain(|p| p.after_step < this.after_step);
    all.push(this);
    let more = all.len().saturating_sub(PROCESSES);
    all.split_off(more)
}

/// Refuses a file that does not begin as this one of a run does.
fn refuse_strange(folder: &Folder, name: &str, begin: &str) -> Result<(), TrainError> {
    if folder.found(name)? == Found::Nothing {
        return Ok(());
    }
    let mut head = Vec::new();
    let file = folder.read(name)?;
    let read = file.take(begin.len() as u64).read_to_end(&mut head);
    read.map_err(TrainError::io(&folder.at(name)))?;
    match head == begin.as_bytes() {
        true => Ok(()),
        false => Err(TrainError::NotOurs {
            path: folder.at(name),
        }),
    }
}

impl Fit<'_> {
    /// From here on the run has a page, if it shall have one.
    pub(super) fn begin_page(&mut self, planned: &Planned, tally: &Tally, after_step: u64) {
        // A file that an earlier version or another program has left there is ignored.
        let told = lowtide_report::account(&self.output.folder().at(REPORT));
        let earlier = told.ok().flatten();
        if !self.run.log.report && earlier.is_none() {
            return;
        }
        let earlier = earlier.unwrap_or_default();
        let this = Process {
            after_step,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: planned.device.note.clone(),
            every_steps: self.run.log.every_steps,
        };
        let processes = with(earlier.processes.clone(), this);
        if !self.run.log.report {
            // What is there lists the processes, from which follows which steps have lines.
            let account = Account {
                processes,
                ..earlier
            };
            let written = write_account(self.output.folder(), &account);
            return self.tell(written.err().map(|e| format!("warning: {e}")));
        }
        self.page = Some(Page {
            after_step,
            processes,
            plan: drawn(planned),
            last: None,
            failing: false,
        });
        self.show(planned, tally);
    }

    /// The page shows another plan from here on.
    pub(super) fn page_of(&mut self, planned: &Planned) {
        if let Some(page) = &mut self.page {
            page.plan = drawn(planned);
        }
    }

    /// Writes the page of a run that has not ended, unless the last one took long and is young.
    pub(super) fn show(&mut self, planned: &Planned, tally: &Tally) {
        let due = |page: &&Page| page.is_due(Instant::now());
        let Some(page) = self.page.as_ref().filter(due) else {
            return;
        };
        let so_far = Ends {
            after_step: page.after_step,
            ..Ends::default()
        };
        let report = self.report(planned, tally, &so_far);
        self.draw(&report, State::Unfinished);
    }

    /// Writes the page of a run that has come to its end, or was asked to stop; with where it is now.
    pub(super) fn show_last(&mut self, report: &TrainReport) -> Option<PathBuf> {
        let state = match report.stopped {
            true => State::Unfinished,
            false => State::Finished,
        };
        self.draw(report, state)
    }

    /// A page is not worth a run: if it cannot be written, the user gets a warning when that begins.
    fn draw(&mut self, report: &TrainReport, state: State) -> Option<PathBuf> {
        let mut page = self.page.take()?;
        let begin = Instant::now();
        let written = self.try_draw(&page, report, state);
        page.last = Some((Instant::now(), begin.elapsed()));
        let told = match &written {
            Err(e) if !page.failing => Some(format!("warning: {e}: no page")),
            _ => None,
        };
        page.failing = written.is_err();
        self.page = Some(page);
        self.tell(told);
        written.ok()
    }

    fn try_draw(
        &self,
        page: &Page,
        report: &TrainReport,
        state: State,
    ) -> Result<PathBuf, Box<dyn std::error::Error>> {
        let folder = self.output.folder();
        // An output of an earlier version may have a file of somebody else there.
        refuse_strange(folder, PAGE, page::BEGIN)?;
        refuse_strange(folder, REPORT, "{\"format\":")?;
        let account = Account {
            format: account::FORMAT,
            processes: page.processes.clone(),
            report: serde_json::to_value(report)?,
            plan: page.plan.clone(),
        };
        write_account(folder, &account)?;
        let run = RunReport {
            state,
            report: account.report,
            ..RunReport::read(folder.path())?
        };
        let html = page::html(&[run]);
        folder.write(PAGE, |out| out.write_all(html.as_bytes()))?;
        Ok(folder.at(PAGE))
    }
}

fn write_account(folder: &Folder, account: &Account) -> Result<(), TrainError> {
    let text = serde_json::to_string(account).expect("plain values");
    folder.write(REPORT, |out| writeln!(out, "{text}"))
}

/// A plan as a page has it: its step, and the table of memory.
fn drawn(planned: &Planned) -> PlanReport {
    PlanReport {
        memory: Some(planned.memory()),
        ..plan_report(&planned.plan, planned.decoder.workload(), &planned.machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_take_little_of_the_time() {
        let begin = Instant::now();
        let ms = |n| Duration::from_millis(n);
        let mut page = Page {
            after_step: 0,
            processes: Vec::new(),
            plan: PlanReport::default(),
            last: None,
            failing: false,
        };
        assert!(page.is_due(begin));
        page.last = Some((begin, ms(20)));
        assert!(!page.is_due(begin + ms(1999)) && page.is_due(begin + ms(2000)));
    }

    #[test]
    fn a_page_of_somebody_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let look = || refuse_strange(&folder, PAGE, page::BEGIN);
        assert!(look().is_ok());
        for (text, ours) in [
            ("", false),
            ("<!doctype html>\n", false),
            (page::BEGIN, true),
        ] {
            std::fs::write(dir.path().join(PAGE), text).unwrap();
            let looked = look();
            assert_eq!(looked.is_ok(), ours, "{text}");
            assert!(ours || matches!(looked, Err(TrainError::NotOurs { .. })));
        }
    }

    #[test]
    fn processes_are_those_whose_steps_stay() {
        let process = |after_step| Process {
            after_step,
            ..Process::default()
        };
        let steps = |all: &[Process]| all.iter().map(|p| p.after_step).collect::<Vec<_>>();
        let mut all = Vec::new();
        let each: [(u64, &[u64]); 5] = [
            (0, &[0]),
            (5, &[0, 5]),
            (9, &[0, 5, 9]),
            (5, &[0, 5]),
            (0, &[0]),
        ];
        for (after, want) in each {
            all = with(all, process(after));
            assert_eq!(steps(&all), want);
        }
        let many: Vec<Process> = (0..1000).map(process).collect();
        let all = with(many, process(1000));
        assert_eq!((all.len(), all[0].after_step), (1000, 1));
    }
}
