use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::testing::noise;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn number(place: Place) -> u64 {
    match place {
        Place::Line(line) | Place::Element { line, .. } => line,
        Place::Row(row) => row,
    }
}

fn lines(bytes: &[u8]) -> Vec<(u64, Result<String, String>)> {
    let file = file(bytes);
    let lines = Lines::open(file.path(), 64).unwrap();
    lines
        .map(|line| line.unwrap())
        .map(|line| (number(line.place), line.text.map_err(|e| e.to_string())))
        .collect()
}

#[test]
fn lines_keep_their_numbers_across_blanks_and_any_line_end() {
    let got = lines(b"\xef\xbb\xbf{\"a\":1}\r\n\r\n  \t\n{\"b\":2}\n\n{\"c\":3}");
    let got: Vec<_> = got
        .iter()
        .map(|(n, s)| (*n, s.as_ref().unwrap().trim()))
        .collect();
    assert_eq!(got, [(1, "{\"a\":1}"), (4, "{\"b\":2}"), (6, "{\"c\":3}")]);
    assert!(lines(b"").is_empty());
    assert!(lines(b"\n\n").is_empty());
}

#[test]
fn a_line_at_the_bound_is_read_and_one_above_it_is_not() {
    let mut bytes = vec![b'x'; 64];
    bytes.push(b'\n');
    assert_eq!(lines(&bytes)[0].1.as_ref().unwrap().len(), 64);
    bytes.insert(0, b'\n');
    bytes.insert(1, b'x');
    let too_long = || Err("line is longer than 64 bytes".to_owned());
    assert_eq!(lines(&bytes), [(2, too_long())]);
    // What comes behind it keeps its number, however the file is read in pieces.
    let huge = [&vec![b'y'; 1 << 20][..], b"\n{}\n", &[b'z'; 65]].concat();
    assert_eq!(
        lines(&huge),
        [(1, too_long()), (2, Ok("{}".to_owned())), (3, too_long())]
    );
}

#[test]
fn what_is_no_regular_file_is_refused() {
    for (path, want) in [
        ("/dev/zero", "a device, not a file"),
        ("/tmp", "a directory, not a file"),
    ] {
        let error = Lines::open(Path::new(path), 64).unwrap_err().to_string();
        assert!(error.ends_with(want), "{error}");
    }
}

#[test]
fn bad_bytes_name_file_and_line() {
    let got = lines(b"{}\nab\xffcd\n{}");
    assert_eq!(got[1], (2, Err("not UTF-8 after 2 bytes".to_owned())));
    assert_eq!(got[2], (3, Ok("{}".to_owned())));
    let error = Lines::open(Path::new("/no/such.jsonl"), 1).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
}

#[test]
fn an_array_is_read_element_by_element() {
    let ok = |number: u64, text: &str| (number, Ok(text.to_owned()));
    let got = lines(b"\xef\xbb\xbf \n[{\"a\": \"],[\"},\n  {\n \"b\": [1, 2]\n}\n, {}]\n \n");
    let want = [
        ok(2, "{\"a\": \"],[\"}"),
        ok(3, "{\n \"b\": [1, 2]\n}\n"),
        ok(6, "{}"),
    ];
    assert_eq!(got, want);
    assert!(lines(b"[]").is_empty());
    assert!(lines(b" [ \n ] ").is_empty());
    // A bad element is one record, and the next ones are read.
    let long = format!("[{{\"a\": \"{}\"}},\n{{}}]", "x".repeat(100));
    let too_long = (1, Err("line is longer than 64 bytes".to_owned()));
    assert_eq!(lines(long.as_bytes()), [too_long, ok(2, "{}")]);
    assert_eq!(lines(b"[{},\n,{}]"), [ok(1, "{}"), ok(2, ""), ok(2, "{}")]);
    // Across the pieces in which a file is read.
    let many = format!("[{}]", vec!["{\"n\": \"[}\\\"\"}"; 60_000].join(",\n"));
    let got = lines(many.as_bytes());
    assert_eq!(got.len(), 60_000);
    assert!(
        got.iter()
            .zip(1..)
            .all(|(line, n)| *line == ok(n, "{\"n\": \"[}\\\"\"}"))
    );
}

#[test]
fn elements_of_an_array_have_an_index() {
    let file = file(b"[{}, {},\n nonsense, \"\xff\"");
    let lines = Lines::open(file.path(), 64).unwrap();
    let places: Vec<String> = lines.map(|l| l.unwrap().place.to_string()).collect();
    let want = [
        ":1, element [0]",
        ":1, element [1]",
        ":2, element [2]",
        ":2, element [3]",
    ];
    assert_eq!(places, want);
}

#[test]
fn an_array_that_does_not_end_well_is_reported() {
    let cut = "a file that begins with '[' is read as one JSON array, and the element that begins here, or the array, \
               does not end";
    let places = [
        ("[", 1),
        ("[{},", 1),
        ("[{},\n{\"a\": \n", 2),
        ("[\"", 1),
        ("[\n{},\n{\"a\": 1,\n{},\n{}]\n", 3),
    ];
    for (text, number) in places {
        let got = lines(text.as_bytes());
        assert_eq!(got.last(), Some(&(number, Err(cut.to_owned()))), "{text}");
    }
    let behind = "a file that begins with '[' is read as one JSON array, and something stands behind its end";
    for (text, number, records) in [("[{}]\n[{}]", 2, 2), ("[]x", 1, 1), ("[{}],", 1, 2)] {
        let got = lines(text.as_bytes());
        assert_eq!(got.len(), records, "{text}: {got:?}");
        assert_eq!(
            got.last(),
            Some(&(number, Err(behind.to_owned()))),
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn no_file_panics_and_line_numbers_rise(
        bytes in prop_oneof![
            noise().prop_map(String::into_bytes),
            noise().prop_map(|inside| format!("[{inside}]").into_bytes()),
            proptest::collection::vec(any::<u8>(), 0..300),
        ]
    ) {
        let n_lines = bytes.split(|&b| b == b'\n').count() as u64;
        let lines = lines(&bytes);
        // Elements of an array may share a line.
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let array = text.trim_ascii_start().starts_with(b"[");
        prop_assert!(lines.windows(2).all(|w| w[0].0 < w[1].0 || array && w[0].0 == w[1].0));
        prop_assert!(lines.last().is_none_or(|l| l.0 <= n_lines));
    }
}
