//! Parts of pictures as SVG without a script: scales, ticks, axes, escaped text. Equal values give equal bytes.

use std::fmt::Write;

/// Width of a picture, in its own units.
pub const WIDTH: f64 = 760.0;
/// Around a picture's panel.
pub const LEFT: f64 = 84.0;
/// As [`LEFT`].
pub const RIGHT: f64 = 20.0;

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
    /// Difference of values between two ticks.
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

    /// From one value to another, with round ticks between them.
    #[must_use]
    pub fn exactly(least: f64, most: f64, places: [f64; 2]) -> Self {
        let most = if most > least { most } else { least + 1.0 };
        Self {
            values: [least, most],
            places,
            step: round_step(most - least),
        }
    }

    /// The coordinate at which a value is drawn.
    #[must_use]
    pub fn place(&self, value: f64) -> f64 {
        let share = (value - self.values[0]) / (self.values[1] - self.values[0]);
        self.places[0] + share * (self.places[1] - self.places[0])
    }

    /// The values of the ticks.
    pub fn ticks(&self) -> impl Iterator<Item = f64> {
        // Sums of steps are not exact.
        let first = (self.values[0] / self.step - 1e-6).ceil();
        let n = ((self.values[1] / self.step - first + 1e-6).floor() as u32).min(20);
        (0..=n).map(move |i| (first + f64::from(i)) * self.step)
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
        let ticks: Vec<f64> = Scale::exactly(0.0, 137.0, [0.0, 1.0]).ticks().collect();
        assert_eq!(ticks, [0.0, 25.0, 50.0, 75.0, 100.0, 125.0]);
        assert_eq!(number(12_500.0, 2500.0), "12.5k");
        assert_eq!(number(2.5, 2.5), "2.5");
        assert_eq!(number(0.0, 1.0), "0");
        assert_eq!(number(0.0025, 0.0005), "0.0025");
        assert_eq!(number(300.0, 100.0), "300");
        assert_eq!(number(2e-5, 1e-5), "2e-5");
    }
}
