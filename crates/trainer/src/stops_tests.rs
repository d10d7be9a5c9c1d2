use super::*;

fn ids_of(text: &str) -> Result<Vec<i32>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("generation_config.json");
    std::fs::write(&path, text).unwrap();
    eos_ids(&path, 8).map_err(|e| {
        let text = e.to_string();
        assert!(text.starts_with(path.to_str().unwrap()), "{text}");
        text
    })
}

#[test]
fn a_number_a_list_or_nothing() {
    assert_eq!(ids_of(r#"{"eos_token_id": 7}"#).unwrap(), [7]);
    assert_eq!(ids_of(r#"{"eos_token_id": [3, 0, 7]}"#).unwrap(), [3, 0, 7]);
    assert_eq!(
        ids_of(r#"{"eos_token_id": null, "a": 1}"#).unwrap(),
        Vec::<i32>::new()
    );
    assert_eq!(ids_of("{}").unwrap(), Vec::<i32>::new());
    assert_eq!(
        eos_ids(Path::new("of no such file"), 8).unwrap(),
        Vec::<i32>::new()
    );
}

#[test]
fn what_is_no_token_id_is_an_error_that_names_the_file() {
    for text in [
        r#"{"eos_token_id": "</s>"}"#,
        r#"{"eos_token_id": [1, 2.5]}"#,
        r#"{"eos_token_id": [[1]]}"#,
        r#"{"eos_token_id": {}}"#,
        r#"{"eos_token_id": true}"#,
        // What the vocabulary of 8 does not have.
        r#"{"eos_token_id": -1}"#,
        r#"{"eos_token_id": 8}"#,
        r#"{"eos_token_id": [3, 99999999999]}"#,
        r#"{"eos_token_id": [3, 4294967299]}"#,
        r#"{"eos_token_id": -9223372036854775808}"#,
        r#"{"eos_token_id": [1"#,
        "[1]",
        "",
    ] {
        assert!(ids_of(text).is_err(), "{text}");
    }
    assert!(eos_ids(Path::new("/"), 8).is_err(), "a directory");
}

#[test]
fn an_answer_ends_before_the_first_of_them() {
    let stops = Stops::of([9, 2]);
    assert_eq!(stops.ids().collect::<Vec<_>>(), [2, 9]);
    assert_eq!(stops.before(&[5, 6, 2, 9, 5]), [5, 6]);
    assert_eq!(stops.before(&[5, 6]), [5, 6]);
    assert_eq!(stops.before(&[9]), Vec::<i32>::new());
    assert_eq!(Stops::default().before(&[9]), [9]);
}
