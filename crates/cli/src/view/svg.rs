//! A screen as a picture, for the documents.

use std::fmt::Write as _;

use ratatui::buffer::Buffer;
use ratatui::style::Color;

/// A cell's size.
const WIDTH: usize = 8;
const HEIGHT: usize = 17;

fn color(color: Color) -> &'static str {
    match color {
        Color::DarkGray => "#6e7681",
        Color::Cyan => "#39c5cf",
        Color::Green => "#3fb950",
        Color::Yellow => "#d29922",
        Color::Magenta => "#bc8cff",
        _ => "#e6edf3",
    }
}

/// Cells of a row that have one colour are one text, as wide as they are.
pub fn svg(buffer: &Buffer) -> String {
    let (width, height) = (buffer.area.width as usize, buffer.area.height as usize);
    let (w, h) = (width * WIDTH + 16, height * HEIGHT + 16);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" font-family=\"DejaVu Sans Mono, \
         monospace\" font-size=\"13\">\n<rect width=\"{w}\" height=\"{h}\" rx=\"6\" fill=\"#0d1117\"/>\n"
    );
    for (y, row) in buffer.content.chunks(width).enumerate() {
        let mut x = 0;
        while x < width {
            let begin = x;
            while x < width && row[x].fg == row[begin].fg {
                x += 1;
            }
            let text: String = row[begin..x].iter().map(|cell| cell.symbol()).collect();
            let kept = text.trim_end();
            let skipped = kept.chars().take_while(|c| *c == ' ').count();
            let kept = kept.trim_start();
            if kept.is_empty() {
                continue;
            }
            let escaped = kept.replace('&', "&amp;").replace('<', "&lt;");
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" fill=\"{}\" textLength=\"{}\" lengthAdjust=\"spacingAndGlyphs\" \
                 xml:space=\"preserve\">{escaped}</text>",
                8 + (begin + skipped) * WIDTH,
                8 + (y + 1) * HEIGHT - 4,
                color(row[begin].fg),
                kept.chars().count() * WIDTH,
            );
        }
    }
    out + "</svg>\n"
}
