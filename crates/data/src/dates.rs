//! Dates as templates write them: C's `strftime`, as Python gives it on Linux in the C locale.

use std::fmt::Write;

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment, in UTC, taken apart.
struct Moment {
    unix_s: i64,
    year: i64,
    month: i64,
    day: i64,
    /// From Sunday, 0.
    weekday: i64,
    /// From 0.
    day_of_year: i64,
    second_of_day: i64,
}

impl Moment {
    fn of(unix_s: i64) -> Self {
        let (days, second_of_day) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        Self {
            unix_s,
            year,
            month,
            day,
            weekday: (days + 4).rem_euclid(7),
            day_of_year: days - days_to(year),
            second_of_day,
        }
    }

    /// Year and week of ISO 8601: weeks begin on Monday, and the first has the year's first Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let thursday = self.day_of_year + 3 - (self.weekday + 6) % 7;
        let length = |year| days_to(year + 1) - days_to(year);
        let (year, thursday) = if thursday < 0 {
            (self.year - 1, thursday + length(self.year - 1))
        } else if thursday >= length(self.year) {
            (self.year + 1, thursday - length(self.year))
        } else {
            (self.year, thursday)
        };
        (year, thursday / 7 + 1)
    }

    /// Weeks of the year that began on weekday `first` (0: Sunday); days before the first are week 0.
    fn week_from(&self, first: i64) -> i64 {
        (self.day_of_year + 7 - (self.weekday - first).rem_euclid(7)) / 7
    }

    /// A number's directive: its value, how many places it fills, and with what.
    fn number(&self, directive: char) -> Option<(i64, usize, char)> {
        let (h, m, s) = (
            self.second_of_day / 3600,
            self.second_of_day / 60 % 60,
            self.second_of_day % 60,
        );
        let h12 = (h + 11) % 12 + 1;
        Some(match directive {
            'Y' => (self.year, 1, '0'),
            'C' => (self.year.div_euclid(100), 2, '0'),
            'y' => (self.year.rem_euclid(100), 2, '0'),
            'G' => (self.iso_week().0, 1, '0'),
            'g' => (self.iso_week().0.rem_euclid(100), 2, '0'),
            'm' => (self.month, 2, '0'),
            'd' => (self.day, 2, '0'),
            'e' => (self.day, 2, ' '),
            'j' => (self.day_of_year + 1, 3, '0'),
            'H' => (h, 2, '0'),
            'k' => (h, 2, ' '),
            'I' => (h12, 2, '0'),
            'l' => (h12, 2, ' '),
            'M' => (m, 2, '0'),
            'S' => (s, 2, '0'),
            's' => (self.unix_s, 1, '0'),
            'u' => ((self.weekday + 6) % 7 + 1, 1, '0'),
            'w' => (self.weekday, 1, '0'),
            'U' => (self.week_from(0), 2, '0'),
            'W' => (self.week_from(1), 2, '0'),
            'V' => (self.iso_week().1, 2, '0'),
            _ => return None,
        })
    }

    /// A directive that is a text.
    fn text(&self, directive: char) -> Option<String> {
        let (weekday, month) = (
            DAYS[self.weekday as usize],
            MONTHS[(self.month - 1) as usize],
        );
        Some(match directive {
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'p' if self.second_of_day < 43_200 => "AM".to_owned(),
            'p' => "PM".to_owned(),
            'P' if self.second_of_day < 43_200 => "am".to_owned(),
            'P' => "pm".to_owned(),
            'F' => self.format("%Y-%m-%d"),
            'D' | 'x' => self.format("%m/%d/%y"),
            'T' | 'X' => self.format("%H:%M:%S"),
            'R' => self.format("%H:%M"),
            'r' => self.format("%I:%M:%S %p"),
            'c' => self.format("%a %b %e %H:%M:%S %Y"),
            // The seconds are whole, and `datetime.now()`, which templates are given, has no time zone.
            'f' => "000000".to_owned(),
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    fn format(&self, format: &str) -> String {
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let body = &rest[at + 1..];
            // glibc's flags: how a number is filled up, and large letters.
            let end = body
                .find(|c| !matches!(c, '-' | '_' | '0' | '^'))
                .unwrap_or(body.len());
            let (flags, directive) = (&body[..end], body[end..].chars().next());
            let fill = flags.chars().rev().find(|&c| c != '^');
            let text = directive.and_then(|c| match (self.number(c), fill) {
                (Some((n, places, usual)), fill) => Some(filled(n, places, fill, usual)),
                (None, _) => self.text(c),
            });
            let length = directive.map_or(0, char::len_utf8);
            match text {
                Some(text) if flags.contains('^') => out.push_str(&text.to_uppercase()),
                Some(text) => out.push_str(&text),
                // What is no directive stays as written.
                None => out.push_str(&rest[at..at + 1 + end + length]),
            }
            rest = &body[end + length..];
        }
        out + rest
    }
}

/// A number in `places` places, filled as a flag says or as it usually is.
fn filled(n: i64, places: usize, flag: Option<char>, usual: char) -> String {
    let mut out = String::new();
    _ = match (flag, usual) {
        (Some('-'), _) => write!(out, "{n}"),
        (Some('_'), _) | (None, ' ') => write!(out, "{n:places$}"),
        _ => write!(out, "{n:0places$}"),
    };
    out
}

/// C's `strftime` in UTC, for all directives of Python's documentation and of glibc that name no locale;
/// others stay as written.
pub(crate) fn strftime(unix_s: i64, format: &str) -> String {
    Moment::of(unix_s).format(format)
}

/// Year, month and day of a day count from 1970-01-01, in the Gregorian calendar: counted in
/// years that begin in March, whose months' lengths repeat every five (Hinnant's algorithm).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// Days from 1970-01-01 to the first day of a year.
fn days_to(year: i64) -> i64 {
    let before = year - 1;
    let leaps = before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    before * 365 + leaps - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_s, want) in [
            (0, "Thursday 1970-01-01 00:00:00 12 AM"),
            (951_782_400, "Tuesday 2000-02-29 00:00:00 12 AM"),
            (1_700_000_000, "Tuesday 2023-11-14 22:13:20 10 PM"),
            (4_107_542_399, "Sunday 2100-02-28 23:59:59 11 PM"),
            (-1, "Wednesday 1969-12-31 23:59:59 11 PM"),
        ] {
            assert_eq!(strftime(unix_s, "%A %Y-%m-%d %H:%M:%S %I %p"), want);
        }
        assert_eq!(
            strftime(951_782_400, "%d %b %y, %-m/%e %B %j%% %Q %"),
            "29 Feb 00, 2/29 February 060% %Q %"
        );
    }

    /// Expected strings are those of `datetime.strftime` in Python 3.11 on Linux.
    #[test]
    fn every_directive_is_that_of_python() {
        let cases: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../testdata/dates.json")).unwrap();
        assert!(cases.len() >= 500);
        for case in &cases {
            let (unix_s, format) = (case[0].as_i64().unwrap(), case[1].as_str().unwrap());
            let want = case[2].as_str().unwrap();
            assert_eq!(strftime(unix_s, format), want, "{format} of {unix_s}");
        }
    }
}
