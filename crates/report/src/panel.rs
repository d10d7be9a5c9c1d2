//! Curves of one quantity by step, one run's or several runs', as SVG without a script.

use std::fmt::Write;

use crate::chart::{Scale, escaped, number};
use crate::style;

/// A picture's size.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 232.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 32.0;
const BOTTOM: f64 = 40.0;
/// Begins of processes that are marked.
const MARKS: usize = 50;

/// Points of one run, in the order of x.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    /// Its name in the legend.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
    /// The same before it was smoothed, where it was.
    pub raw: Vec<(f64, f64)>,
    /// Each point is drawn as a dot too.
    pub dots: bool,
}

/// A picture of several series by step; empty where none has a point. `marks`: steps after which another process went
/// on.
pub(crate) fn lines(title: &str, series: &[Series], marks: &[f64]) -> String {
    lines_over("step", title, series, marks)
}

/// The same over another axis, which is called `over`.
pub(crate) fn lines_over(over: &str, title: &str, series: &[Series], marks: &[f64]) -> String {
    let all = || series.iter().flat_map(|s| s.points.iter().chain(&s.raw));
    if all().next().is_none() {
        return String::new();
    }
    let fold =
        |of: fn(&(f64, f64)) -> f64, by: fn(f64, f64) -> f64, from| all().map(of).fold(from, by);
    let (least, most) = (
        fold(|p| p.1, f64::min, f64::INFINITY),
        fold(|p| p.1, f64::max, f64::NEG_INFINITY),
    );
    let last = fold(|p| p.0, f64::max, 0.0);
    let x = Scale::exactly(0.0, last, [LEFT, WIDTH - RIGHT]);
    let y = Scale::between(least, most, [HEIGHT - BOTTOM, TOP]);
    let mut text = begin(title, &in_words(series), WIDTH, HEIGHT);
    axes(&mut text, &x, &y, over);
    let marks = marks.iter().filter(|m| (0.0..=last).contains(*m));
    for &at in marks.take(MARKS) {
        let place = x.place(at);
        let _ = writeln!(
            text,
            "<line class=\"mark\" x1=\"{place:.1}\" y1=\"{TOP}\" x2=\"{place:.1}\" y2=\"{}\"><title>another process goes on after step {at}</title></line>",
            HEIGHT - BOTTOM
        );
    }
    for (i, s) in series.iter().enumerate() {
        let (colour, dash) = style::series(i);
        let mut line = |class: &str, points: &[(f64, f64)], dash: &str| {
            let places: Vec<String> = points
                .iter()
                .map(|&(a, b)| format!("{:.1},{:.1}", x.place(a), y.place(b)))
                .collect();
            let _ = writeln!(
                text,
                "<polyline class=\"{class}\" points=\"{}\" style=\"stroke:{colour};stroke-dasharray:{dash}\"/>",
                places.join(" ")
            );
        };
        if !s.raw.is_empty() {
            line("faint", &s.raw, "none");
        }
        line("curve", &s.points, dash);
        let name = match series.len() {
            1 => String::new(),
            _ => escaped(&s.name) + ", ",
        };
        // A curve of one point is to be seen too.
        for &(a, b) in s.points.iter().filter(|_| s.dots || s.points.len() == 1) {
            let _ = writeln!(
                text,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" style=\"fill:{colour}\"><title>{name}{over} {a}: {b}</title></circle>",
                x.place(a),
                y.place(b),
            );
        }
    }
    text.push_str("</svg>\n");
    text
}

/// The begin of a picture.
pub(crate) fn begin(title: &str, words: &str, width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" font-size=\"12\">\n<desc>{}</desc>\n\
         <text class=\"title\" x=\"2\" y=\"16\" font-size=\"14\" font-weight=\"600\">{}</text>\n",
        escaped(words),
        escaped(title),
    )
}

/// Axes with ticks; horizontal lines at the ticks of `y`.
pub(crate) fn axes(text: &mut String, x: &Scale, y: &Scale, below: &str) {
    let bottom = y.places[0];
    let [from, to] = x.places;
    for value in y.ticks() {
        let at = y.place(value);
        let _ = writeln!(
            text,
            "<line class=\"grid\" x1=\"{from}\" y1=\"{at:.1}\" x2=\"{to}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            from - 7.0,
            at + 4.0,
            number(value, y.step)
        );
    }
    time_axis(text, x, bottom, below);
}

/// The lower axis with ticks.
pub(crate) fn time_axis(text: &mut String, x: &Scale, bottom: f64, below: &str) {
    let [from, to] = x.places;
    for value in x.ticks() {
        let at = x.place(value);
        let _ = writeln!(
            text,
            "<line class=\"axis\" x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 4.0,
            bottom + 17.0,
            number(value, x.step)
        );
    }
    let _ = writeln!(
        text,
        "<line class=\"axis\" x1=\"{from}\" y1=\"{bottom}\" x2=\"{to}\" y2=\"{bottom}\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(from, to),
        bottom + 34.0,
        escaped(below)
    );
}

/// Names and lines of several series, once for a page of pictures; empty of one.
pub(crate) fn legend(names: &[String]) -> String {
    if names.len() < 2 {
        return String::new();
    }
    let mut text = String::from("<ul class=\"legend\">");
    for (i, name) in names.iter().enumerate() {
        let (colour, dash) = style::series(i);
        let _ = write!(
            text,
            "<li><svg width=\"34\" height=\"10\" aria-hidden=\"true\"><line x1=\"0\" y1=\"5\" x2=\"34\" y2=\"5\" \
             stroke-width=\"2.5\" style=\"stroke:{colour};stroke-dasharray:{dash}\"/></svg> {}</li>",
            escaped(name)
        );
    }
    text.push_str("</ul>\n");
    text
}

/// What a picture shows, for those who do not see it.
fn in_words(series: &[Series]) -> String {
    let each = series.iter().filter_map(|s| {
        let (first, last) = (s.points.first()?, s.points.last()?);
        Some(format!(
            "{} {} at {}, {} at {}",
            s.name, first.1, first.0, last.1, last.0
        ))
    });
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_no_markup_of_a_name() {
        let series = Series {
            name: "<script>".to_owned(),
            points: vec![(1.0, 2.0), (2.0, 1.0)],
            dots: true,
            ..Series::default()
        };
        let text = lines("a & b", &[series.clone(), series], &[1.0, 7.0]);
        assert!(text.contains("a &amp; b") && !text.contains("<script"));
        assert_eq!(text.matches("<circle").count(), 4);
        // Only what is within the steps is marked.
        assert_eq!(text.matches("class=\"mark\"").count(), 1);
        assert!(lines("nothing", &[Series::default()], &[]).is_empty());
    }
}
