//! Pictures of curves, as SVG without a script. Equal curves give equal bytes.

use std::fmt::Write;

/// A picture's width.
pub const WIDTH: f64 = 760.0;
/// Around a picture's panel.
pub const LEFT: f64 = 84.0;
/// As [`LEFT`].
pub const RIGHT: f64 = 20.0;

/// Points of a series that are drawn as they are; of more, each stretch of the axis shows its lowest and highest.
const POINTS_MAX: usize = 1200;
/// Height of a picture of [`lines`].
const HEIGHT: f64 = 250.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 54.0;

/// Colours of series beside each other, told apart by most eyes, with a dash pattern for the others.
const STYLES: [(&str, &str); 8] = [
    ("#1f6fb2", "none"),
    ("#b35900", "7 3"),
    ("#2a7f3e", "2 3"),
    ("#8b3fa0", "9 3 2 3"),
    ("#c01c28", "5 2"),
    ("#666666", "1 3"),
    ("#007a87", "12 3"),
    ("#8a6d00", "4 4"),
];

/// Text without a meaning in HTML and SVG. Control characters become spaces.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && c != '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// From values to places on a picture.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    values: [f64; 2],
    /// Where the lowest and the highest value lie.
    pub places: [f64; 2],
    /// From tick to tick.
    pub step: f64,
}

impl Scale {
    /// From zero to a round number that is no less than `most`.
    #[must_use]
    pub fn to(most: f64, places: [f64; 2]) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let step = round_step(most);
        Self {
            values: [0.0, (most / step).ceil() * step],
            places,
            step,
        }
    }

    /// From a round number that is no more than `least` to one that is no less than `most`; from zero, where that
    /// leaves the values more than half of the axis.
    #[must_use]
    pub fn between(least: f64, most: f64, places: [f64; 2]) -> Self {
        if least >= 0.0 && least < most / 2.0 {
            return Self::to(most, places);
        }
        let width = most - least;
        if width <= 0.0 {
            // One value: around it.
            let around = if least == 0.0 { 1.0 } else { least.abs() };
            return Self::between(least - around / 4.0, most + around / 4.0, places);
        }
        let step = round_step(width);
        Self {
            values: [(least / step).floor() * step, (most / step).ceil() * step],
            places,
            step,
        }
    }

    /// Where a value lies.
    #[must_use]
    pub fn place(&self, value: f64) -> f64 {
        let share = (value - self.values[0]) / (self.values[1] - self.values[0]);
        self.places[0] + share * (self.places[1] - self.places[0])
    }

    /// The values of the ticks.
    pub fn ticks(&self) -> impl Iterator<Item = f64> {
        let n = ((self.values[1] - self.values[0]) / self.step).round() as u32;
        (0..=n).map(|i| self.values[0] + f64::from(i) * self.step)
    }

    /// The largest value of the axis.
    #[must_use]
    pub fn most(&self) -> f64 {
        self.values[1]
    }
}

/// A round step of which six or fewer make `width`.
fn round_step(width: f64) -> f64 {
    let ten = 10f64.powf((width / 5.0).log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|n| n * ten);
    let mut fitting = steps.filter(|s| s * 6.0 >= width);
    fitting.next().unwrap_or(10.0 * ten)
}

/// A number of a tick: no more digits than it has, of numbers so far apart.
#[must_use]
pub fn number(x: f64, step: f64) -> String {
    match x {
        x if x >= 1e6 => format!("{}M", number(x / 1e6, step / 1e6)),
        x if x >= 1e4 => format!("{}k", number(x / 1e3, step / 1e3)),
        x if x != 0.0 && x.abs() < 1e-4 && step < 1e-4 => {
            let power = x.abs().log10().floor() as i32;
            let ten = 10f64.powi(power);
            format!("{}e{power}", number(x / ten, step / ten))
        }
        x => {
            let digits = (2.0 - step.log10().floor()).clamp(0.0, 12.0) as usize;
            let text = format!("{x:.digits$}");
            if digits == 0 {
                return text;
            }
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

/// Two axes with ticks and names; horizontal lines at the ticks of `y`.
pub fn axes(text: &mut String, x: &Scale, y: &Scale, below: &str, left: &str) {
    let [bottom, top] = y.places;
    let [from, to] = x.places;
    for value in y.ticks() {
        let at = y.place(value);
        let _ = writeln!(
            text,
            "<line x1=\"{from}\" y1=\"{at:.1}\" x2=\"{to}\" y2=\"{at:.1}\" stroke=\"#e2e2e2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            from - 8.0,
            at + 4.0,
            number(value, y.step)
        );
    }
    for value in x.ticks() {
        let at = x.place(value);
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#444444\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 5.0,
            bottom + 20.0,
            number(value, x.step)
        );
    }
    let _ = writeln!(
        text,
        "<line x1=\"{from}\" y1=\"{bottom}\" x2=\"{to}\" y2=\"{bottom}\" stroke=\"#444444\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{below}</text>\n\
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{left}</text>",
        f64::midpoint(from, to),
        bottom + 42.0,
        f64::midpoint(bottom, top)
    );
}

/// Points of one run, in the order of x.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// x and y. What is no number leaves a gap in neither.
    pub points: Vec<(f64, f64)>,
    /// Each point is drawn as a dot too.
    pub dots: bool,
}

/// A picture of several series over one axis; empty where none has a point. `about` says what it shows for those who
/// do not see it.
#[must_use]
pub fn lines(title: &str, below: &str, series: &[Series]) -> String {
    let all = || {
        let points = series.iter().flat_map(|s| &s.points);
        points.filter(|p| is_drawn(**p))
    };
    if all().next().is_none() {
        return String::new();
    }
    let fold =
        |of: fn(&(f64, f64)) -> f64, by: fn(f64, f64) -> f64, from| all().map(of).fold(from, by);
    let y_of = |p: &(f64, f64)| p.1;
    let (least, most) = (
        fold(y_of, f64::min, f64::INFINITY),
        fold(y_of, f64::max, f64::NEG_INFINITY),
    );
    let last = fold(|p| p.0, f64::max, 0.0);
    let x = Scale::to(last, [LEFT, WIDTH - RIGHT]);
    let y = Scale::between(least, most, [HEIGHT - BOTTOM, TOP]);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <title>{}</title>\n<desc>{}</desc>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"15\" font-weight=\"600\">{}</text>\n",
        escaped(title),
        escaped(&in_words(series)),
        escaped(title),
    );
    axes(&mut text, &x, &y, below, "");
    for (i, s) in series.iter().enumerate() {
        let (colour, dash) = STYLES[i % STYLES.len()];
        let places: Vec<String> = thinned(&s.points, x.most())
            .into_iter()
            .map(|(a, b)| format!("{:.1},{:.1}", x.place(a), y.place(b)))
            .collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" stroke-dasharray=\"{dash}\"/>",
            places.join(" ")
        );
        for place in places.iter().filter(|_| s.dots) {
            let (a, b) = place.split_once(',').expect("a comma was put there");
            let _ = writeln!(
                text,
                "<circle cx=\"{a}\" cy=\"{b}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
    }
    text.push_str("</svg>\n");
    text
}

/// Names and lines of several series, once for a page of pictures; empty of one.
#[must_use]
pub fn legend(names: &[String]) -> String {
    if names.len() < 2 {
        return String::new();
    }
    let mut text = String::from("<ul class=\"legend\">");
    for (i, name) in names.iter().enumerate() {
        let (colour, dash) = STYLES[i % STYLES.len()];
        let _ = write!(
            text,
            "<li><svg width=\"34\" height=\"10\" aria-hidden=\"true\"><line x1=\"0\" y1=\"5\" x2=\"34\" y2=\"5\" \
             stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/></svg> {}</li>",
            escaped(name)
        );
    }
    text.push_str("</ul>\n");
    text
}

/// Whether a point is drawn: it is a number, and none so large that the span from one to another is none.
fn is_drawn((x, y): (f64, f64)) -> bool {
    x.abs() < 1e300 && y.abs() < 1e300
}

/// The points that are drawn: all that are numbers, or of each stretch of the axis the lowest and the highest.
fn thinned(points: &[(f64, f64)], most: f64) -> Vec<(f64, f64)> {
    let points = || points.iter().copied().filter(|p| is_drawn(*p));
    if points().count() <= POINTS_MAX {
        return points().collect();
    }
    let stretches = POINTS_MAX as f64 / 2.0;
    let stretch = |x: f64| (x / most * stretches).floor() as u64;
    let mut drawn = Vec::with_capacity(POINTS_MAX + 2);
    let mut held: Option<[(f64, f64); 2]> = None;
    let mut put = |held: Option<[(f64, f64); 2]>| {
        if let Some([low, high]) = held {
            let mut both = [low, high];
            both.sort_by(|a, b| a.0.total_cmp(&b.0));
            drawn.extend_from_slice(&both[usize::from(low == high)..]);
        }
    };
    for p in points() {
        held = match held {
            Some([low, high]) if stretch(low.0) == stretch(p.0) => Some([
                if p.1 < low.1 { p } else { low },
                if p.1 > high.1 { p } else { high },
            ]),
            whole => {
                put(whole);
                Some([p, p])
            }
        };
    }
    put(held);
    drawn
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
    fn ticks_are_round_and_hold_all() {
        for most in [0.0, 1e-6, 0.3, 1.0, 7.3, 24.0, 99.0, 13_000.0, 4e9] {
            let scale = Scale::to(most, [0.0, 100.0]);
            assert!(scale.most() >= most);
            assert!((2..=8).contains(&scale.ticks().count()), "{most}");
            assert!(scale.place(most) <= 100.0 + 1e-9);
        }
        for (least, most) in [(1.2, 1.5), (0.7, 1.4), (-3.0, 2.0), (5.0, 5.0), (0.0, 0.0)] {
            let scale = Scale::between(least, most, [0.0, 100.0]);
            assert!(scale.place(least) >= -1e-9 && scale.place(most) <= 100.0 + 1e-9);
            assert!((2..=9).contains(&scale.ticks().count()), "{least} {most}");
        }
        assert_eq!(number(12_500.0, 2500.0), "12.5k");
        assert_eq!(number(2.5, 2.5), "2.5");
        assert_eq!(number(0.0, 1.0), "0");
        assert_eq!(number(0.0025, 0.0005), "0.0025");
        assert_eq!(number(300.0, 100.0), "300");
        assert_eq!(number(2e-5, 1e-5), "2e-5");
    }

    /// A spike of one step in a million stays in the picture.
    #[test]
    fn of_many_points_the_lowest_and_the_highest_stay() {
        let mut points: Vec<(f64, f64)> = (1..=1_000_000)
            .map(|i| (f64::from(i), 1.0 + f64::from(i % 7) / 10.0))
            .collect();
        points[444_444].1 = 9.0;
        points[555_555].1 = 0.25;
        points[600_000].1 = f64::NAN;
        let drawn = thinned(&points, 1e6);
        assert!(drawn.len() <= POINTS_MAX + 2, "{}", drawn.len());
        assert!(drawn.contains(&(444_445.0, 9.0)) && drawn.contains(&(555_556.0, 0.25)));
        assert!(drawn.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(thinned(&points[..1000], 1000.0), points[..1000]);
    }

    #[test]
    fn a_picture_has_no_markup_of_a_name() {
        let series = [Series {
            name: "<script>".to_owned(),
            points: vec![(1.0, 2.0), (2.0, 1.0)],
            dots: true,
        }];
        let text = lines("a & b", "step", &series);
        assert!(text.contains("a &amp; b") && !text.contains("<script"));
        assert_eq!(text.matches("<circle").count(), 2);
        assert!(lines("nothing", "step", &[Series::default()]).is_empty());
    }
}
