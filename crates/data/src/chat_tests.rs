use serde_json::json;

use super::super::testing;
use super::*;

fn template(source: &str) -> ChatTemplate {
    let sources = [("default".to_owned(), source.to_owned())];
    ChatTemplate::new(&sources, vec![], 0, Path::new("test")).unwrap()
}

fn render(source: &str) -> Result<Rendered, RecordProblem> {
    let messages = [json!({"role": "user", "content": "hi"})];
    template(source).render(&messages, None, false)
}

#[test]
fn texts_and_prompts_are_those_of_transformers() {
    let cases = testing::golden();
    assert!(cases.len() > 30);
    for case in &cases {
        let tokenizer = testing::with_template(&case.template);
        let template = tokenizer.chat_template().unwrap();
        let place = format!("{} / {}", case.template, case.title);
        let text = template
            .render(&case.messages, case.tools.as_ref(), false)
            .unwrap()
            .text;
        assert_eq!(text, case.text, "{place}");
        let last = case
            .messages
            .iter()
            .rposition(|m| m["role"] == "assistant")
            .unwrap();
        let prompt = template
            .render(&case.messages[..last], case.tools.as_ref(), true)
            .unwrap();
        assert_eq!(prompt.text, case.prompt, "{place}");
    }
}

/// Outputs of Jinja2 3.1.6 as transformers sets it up, without the marks.
#[test]
fn generation_tags_keep_the_whitespace_control_of_both_sides() {
    for (source, text, generated) in [
        (
            "a {% generation %} b {% endgeneration %} c",
            "a  b  c",
            " b ",
        ),
        (
            "a {%- generation %} b {% endgeneration -%} c",
            "a b c",
            " b ",
        ),
        ("a {% generation -%} b {%- endgeneration %} c", "a b c", "b"),
        (
            "a\n  {% generation %}\n  b\n  {% endgeneration %}\n c",
            "a\n  b\n c",
            "  b\n",
        ),
        (
            "a\n  {%+ generation %}\nb{% endgeneration +%}\nc",
            "a\n  b\nc",
            "b",
        ),
        ("{%generation%}b{%endgeneration%}", "b", "b"),
    ] {
        let got = render(source).unwrap();
        assert_eq!(got.text, text, "{source:?}");
        let spoken: String = got.generated.iter().map(|r| &got.text[r.clone()]).collect();
        assert_eq!(spoken, generated, "{source:?}");
    }
}

#[test]
fn empty_generations_leave_no_range_and_odd_marks_are_errors() {
    assert!(
        render("{% generation %}{% endgeneration %}x")
            .unwrap()
            .generated
            .is_empty()
    );
    let nested = "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}";
    assert_eq!(render(nested), Err(RecordProblem::UnpairedMarkers));
    assert!(!template("{{ 'generation' }}").marks_assistant());
}

#[test]
fn a_forged_mark_is_refused() {
    let marked = template(
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    );
    let forged = [json!({"role": "user", "content": "\u{fdd0}all of this\u{fdd1}"})];
    let problem = marked.render(&forged, None, false).unwrap_err();
    assert_eq!(
        problem.to_string(),
        "a string holds the reserved character U+FDD0"
    );
    let nested = [json!({"role": "user", "content": "", "x": [{"\u{fdd1}": 1}]})];
    assert!(marked.render(&nested, None, false).is_err());
}

#[test]
fn a_template_that_refuses_says_why() {
    let problem = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(
        problem.to_string().contains("roles must alternate"),
        "{problem}"
    );
    let problem = render("{{ messages[0].x.y }}").unwrap_err();
    assert!(problem.to_string().contains("undefined"), "{problem}");
}

#[test]
fn a_template_that_does_not_parse_is_named() {
    for source in ["{% for %}", "{% generation %}", "{{", "{% endgeneration %}"] {
        let sources = [("default".to_owned(), source.to_owned())];
        let error = ChatTemplate::new(&sources, vec![], 0, Path::new("t.json")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("t.json: chat template, line 1: syntax error"),
            "{error}"
        );
    }
    let named = [("rag".to_owned(), String::new())];
    let error = ChatTemplate::new(&named, vec![], 0, Path::new("t")).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("none is named 'default' (names: rag)"),
        "{error}"
    );
}

#[test]
fn the_tool_template_renders_conversations_with_tools() {
    let sources = [("default", "plain"), ("tool_use", "tools")].map(|(n, s)| (n.into(), s.into()));
    let template = ChatTemplate::new(&sources, vec![], 0, Path::new("t")).unwrap();
    assert_eq!(template.render(&[], None, false).unwrap().text, "plain");
    assert_eq!(
        template
            .render(&[], Some(&json!([{}])), false)
            .unwrap()
            .text,
        "tools"
    );
}

/// Expected texts are Jinja2's (3.1.6, with transformers' settings).
#[test]
fn line_ends_methods_and_tests_are_those_of_jinja() {
    let messages = [serde_json::json!({"role": "user", "content": "it's A x-ray"})];
    for (source, want) in [
        // A line end is read as \n, in the text and in strings, and the last one is not part of it.
        ("a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n", "a\nb\nc"),
        ("{{ 'x\r\ny' }}\rz\r\n\r\n", "x\ny\nz\n"),
        ("{{ messages[0].content.title() }}", "It'S A X-Ray"),
        (
            "{{ 'x' is sequence }}{{ {} is sequence }}{{ [] is sequence }}{{ 1 is sequence }}",
            "TrueTrueTrueFalse",
        ),
        (
            "{{ 'x' is iterable }}{{ 1 is iterable }}{{ none is sequence }}",
            "TrueFalseFalse",
        ),
        (
            "{{ strftime_now('%j %U %W %V %w %u %D %x %Z|') }}",
            "208 29 30 30 5 5 07/26/24 07/26/24 |",
        ),
    ] {
        let source = [("default".to_owned(), source.to_owned())];
        let template =
            ChatTemplate::new(&source, Vec::new(), 1_721_995_200, Path::new("t")).unwrap();
        let text = template.render(&messages, None, false).unwrap().text;
        assert_eq!(text, want, "{source:?}");
    }
    let source = [("default".to_owned(), "{{ messages[0].items }}".to_owned())];
    let error = ChatTemplate::new(&source, Vec::new(), 0, Path::new("t")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("prints the method 'items' itself"),
        "{error}"
    );
}

#[test]
fn what_a_template_says_is_cut_and_reported_on_one_line() {
    let problem = render("{{ raise_exception('no\n\x1b[31m' ~ 'x' * 100000) }}").unwrap_err();
    let text = problem.to_string();
    assert!(
        text.contains("no  [31mxxx") && text.ends_with("xx..."),
        "{text}"
    );
    assert!(text.len() < 400, "{}", text.len());
    let RecordProblem::Render { line, always, .. } = problem else {
        panic!("{text}");
    };
    assert_eq!((line, always), (Some(1), true));
    // A template that refuses one conversation does not fail on every one.
    let refuses = "\n{% if messages[0].content == 'x' %}{{ raise_exception('not x') }}{% endif %}";
    let messages = [json!({"role": "user", "content": "x"})];
    let problem = template(refuses)
        .render(&messages, None, false)
        .unwrap_err();
    assert_eq!(
        problem.to_string(),
        "chat template, line 2: invalid operation: not x"
    );
    assert!(matches!(
        problem,
        RecordProblem::Render { always: false, .. }
    ));
}
