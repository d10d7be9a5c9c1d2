//! Where the elements of a JSON array end, byte by byte, so that a file of one array is read a record at a time.

/// What a byte is to the element that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Byte {
    /// A part of it.
    Inside,
    /// The comma behind it.
    Comma,
    /// The end of the array.
    End,
}

/// The place in an element: how deep inside brackets, and whether inside a string.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Inside {
    depth: usize,
    string: bool,
    escaped: bool,
}

impl Inside {
    /// Takes the next byte. Brackets are counted, not matched: what is in an element is its parser's to check.
    pub fn take(&mut self, byte: u8) -> Byte {
        if self.string {
            self.string = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return Byte::Inside;
        }
        match byte {
            b'"' => self.string = true,
            b'[' | b'{' => self.depth += 1,
            b']' if self.depth == 0 => return Byte::End,
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            b',' if self.depth == 0 => return Byte::Comma,
            _ => {}
        }
        Byte::Inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements of an array's inside, and what is left behind its end.
    fn elements(text: &str) -> (Vec<String>, Option<&str>) {
        let (mut all, mut now, mut inside) = (Vec::new(), Vec::new(), Inside::default());
        for (i, &byte) in text.as_bytes().iter().enumerate() {
            match inside.take(byte) {
                Byte::Inside => now.push(byte),
                end => {
                    all.push(String::from_utf8(std::mem::take(&mut now)).expect("text"));
                    if end == Byte::End {
                        return (all, Some(&text[i + 1..]));
                    }
                }
            }
        }
        (all, None)
    }

    #[test]
    fn elements_end_at_their_own_commas() {
        for (text, want, left) in [
            (
                r#"{"a":[1,2]},{"b":"],\"}"}] x"#,
                &[r#"{"a":[1,2]}"#, r#"{"b":"],\"}"}"#][..],
                Some(" x"),
            ),
            (r#""a\\","b"]"#, &[r#""a\\""#, r#""b""#], Some("")),
            ("]", &[""], Some("")),
            ("1,,2]", &["1", "", "2"], Some("")),
            (r#"{"open": [1, 2"#, &[], None),
            ("}1]", &["}1"], Some("")),
        ] {
            let (found, rest) = elements(text);
            assert_eq!(
                (found.as_slice(), rest),
                (
                    &want.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..],
                    left
                ),
                "{text}"
            );
        }
    }
}
