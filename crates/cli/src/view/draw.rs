//! How it is drawn.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph};

use super::Seen;
use crate::out::{bytes, duration, seconds};

const QUIET: Color = Color::DarkGray;
const BRIGHT: Color = Color::Cyan;

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, seen: &Seen) {
    let [head, body, notes, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(6),
        Constraint::Length(6),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(top(seen, head)), head);
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(58), Constraint::Percentage(42)]).areas(body);
    curve(frame, seen, left);
    frame.render_widget(Paragraph::new(figures(seen, right)), right);
    said(frame, seen, notes);
    let keys = "q leaves this view, the run goes on   Ctrl-C saves and stops";
    let keys = Line::styled(keys, Style::new().fg(QUIET));
    frame.render_widget(Paragraph::new(keys), foot);
}

/// A bar of so many cells.
fn bar(share: f64, width: usize) -> [String; 2] {
    let share = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let full = (share * width as f64).round() as usize;
    ["█".repeat(full), "░".repeat(width - full)]
}

fn spans(bar: [String; 2], color: Color) -> [Span<'static>; 2] {
    let [full, rest] = bar;
    [
        Span::styled(full, Style::new().fg(color)),
        Span::styled(rest, Style::new().fg(QUIET)),
    ]
}

/// The model, how far it is, and what is going on.
fn top(seen: &Seen, area: Rect) -> Vec<Line<'static>> {
    let mut first = vec![Span::styled(
        format!("{}  ", seen.title),
        Style::new().fg(BRIGHT),
    )];
    if seen.steps > 0 {
        first.push(Span::raw(format!("step {}/{}", seen.step, seen.steps)));
    }
    if let Some(left) = seen.left {
        first.push(Span::raw(format!("  {} left", duration(left))));
    }
    if let Some(doing) = &seen.doing {
        first.push(Span::styled(
            format!("  {doing} ..."),
            Style::new().fg(Color::Yellow),
        ));
    }
    let share = seen.step as f64 / seen.steps.max(1) as f64;
    let whole = spans(bar(share, area.width as usize), BRIGHT);
    vec![Line::from(first), Line::from(whole.to_vec())]
}

/// The loss by step.
fn curve(frame: &mut Frame<'_>, seen: &Seen, area: Rect) {
    let title = format!("loss {:.4}", seen.loss);
    let block = Block::bordered()
        .border_style(Style::new().fg(QUIET))
        .title(if seen.step > 0 {
            title
        } else {
            "loss".to_owned()
        });
    let (Some(first), Some(last)) = (seen.losses.first(), seen.losses.last()) else {
        return frame.render_widget(block, area);
    };
    let values = seen.losses.iter().map(|p| p.1);
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    let pad = 0.05 * (high - low).max(1e-6 * high.abs().max(1e-6));
    let (low, high) = (low - pad, high + pad);
    let end = last.0.max(first.0 + 1.0);
    let quiet = Style::new().fg(QUIET);
    let set = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().fg(Color::Green))
        .data(&seen.losses);
    let chart = Chart::new(vec![set])
        .block(block)
        .x_axis(
            Axis::default()
                .style(quiet)
                .bounds([first.0, end])
                .labels([format!("{}", first.0), format!("{}", last.0)]),
        )
        .y_axis(
            Axis::default()
                .style(quiet)
                .bounds([low, high])
                .labels([format!("{low:.3}"), format!("{high:.3}")]),
        );
    frame.render_widget(chart, area);
}

/// Figures of the last step, the lanes, and the tiers.
fn figures(seen: &Seen, area: Rect) -> Vec<Line<'static>> {
    let name = |text: &str| Span::styled(format!(" {text:<7}"), Style::new().fg(QUIET));
    let mut lines = Vec::new();
    if seen.step > 0 {
        lines.push(Line::raw(format!(
            " norm {:.3}  learning rate {:.3e}",
            seen.norm, seen.learning_rate
        )));
    }
    if let Some(took) = seen.seconds {
        if let Some(rate) = seen.tokens_per_second {
            lines.push(Line::raw(format!(" {rate:.0} tokens/s")));
        }
        let (took, predicted) = (seconds(took), seconds(seen.predicted));
        lines.push(Line::raw(format!(" {took} (predicted {predicted})")));
    }
    if seen.skipped + seen.spikes > 0 {
        lines.push(Line::styled(
            format!(" {} left out, {} spikes", seen.skipped, seen.spikes),
            Style::new().fg(Color::Yellow),
        ));
    }
    lines.push(Line::raw(""));
    let width = (area.width as usize).saturating_sub(14).min(24);
    for (lane, share) in &seen.lanes {
        let mut line = vec![name(lane)];
        line.extend(spans(bar(*share, width), Color::Green));
        line.push(Span::raw(format!(" {:.0}%", 100.0 * share)));
        lines.push(Line::from(line));
    }
    lines.push(Line::raw(""));
    let width = (area.width as usize).saturating_sub(32).min(12);
    for (tier, planned, allowed) in &seen.tiers {
        let mut line = vec![name(tier)];
        let share = *planned as f64 / (*allowed).max(1) as f64;
        line.extend(spans(bar(share, width), Color::Magenta));
        line.push(Span::raw(format!(
            " {} of {}",
            bytes(*planned),
            bytes(*allowed)
        )));
        lines.push(Line::from(line));
    }
    lines
}

/// The last that was said.
fn said(frame: &mut Frame<'_>, seen: &Seen, area: Rect) {
    let rows = (area.height as usize).saturating_sub(2);
    let from = seen.notes.len().saturating_sub(rows);
    let lines: Vec<Line<'_>> = seen.notes[from..]
        .iter()
        .map(|note| Line::raw(note.as_str()))
        .collect();
    let block = Block::bordered().border_style(Style::new().fg(QUIET));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
