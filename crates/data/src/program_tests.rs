#![allow(clippy::print_stdout, reason = "tells what was measured")]
use std::path::Path;

use minijinja::value::Serde;
use serde_json::{Value as Json, json};

use std::time::{Duration, Instant};

use super::super::chat::ChatTemplate;
use super::*;
use crate::error::{DataError, RecordProblem};

fn open(source: &str) -> Result<ChatTemplate, DataError> {
    let sources = [("default".to_owned(), source.to_owned())];
    ChatTemplate::new(&sources, vec![], 0, Path::new("test"))
}

fn chat(turns: usize, bytes: usize) -> Vec<Json> {
    let content = "word ".repeat(bytes.div_ceil(5));
    let roles = ["user", "assistant"].into_iter().cycle();
    let message = |role| json!({ "role": role, "content": &content[..bytes] });
    roles.take(turns).map(message).collect()
}

/// Templates that would loop, grow or nest without end, each with the limit that stops it.
fn hostile() -> Vec<(String, &'static str)> {
    let deep = |open: &str, close: &str, n: usize| {
        format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n))
    };
    let chain = |op: &str| format!("{{{{ x{} }}}}", format!("{op}x").repeat(80_000));
    let mut all: Vec<(String, &'static str)> = vec![
        // Loops.
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}".into(), "instructions"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}".into(), "limit"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}".into(), "limit"),
        (format!("{{% for a in range(99999) %}}{}{{% endfor %}}", "x".repeat(100_000)), "prints more than"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".into(), "recursion"),
        ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}".into(), "recursion"),
        ("{% for x in [1, [1]] recursive %}{{ loop([x]) }}{% endfor %}".into(), ""),
        ("{% block a %}{{ self.a() }}{% endblock %}".into(), "recursion"),
        // Text without end.
        ("{{ 'a' * 1000000 }}".repeat(40), "prints more than"),
        // Strings that double.
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}".into(), "bytes or items"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}".into(), "bytes or items"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s * 9 %}{% endfor %}".into(), "bytes or items"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}{% endfor %}".into(), "prints more than"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s]|join(ns.s) %}{% endfor %}".into(), "bytes or items"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s|replace('a', ns.s) %}{% endfor %}".into(), "bytes or items"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('b', ns.s) %}{% endfor %}".into(), "bytes or items"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = '%s%s'|format(ns.s, ns.s) %}{% endfor %}".into(), "bytes or items"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = '{}{}'.format(ns.s, ns.s) %}{% endfor %}".into(), "bytes or items"),
        ("{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s.join([ns.s, ns.s, ns.s]) %}{% endfor %}".into(), "bytes or items"),
        ("{% set ns = namespace(s='<') %}{% for i in range(99) %}{% set ns.s = ns.s|urlencode %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}".into(), ""),
        ("{% set ns = namespace(s='\"') %}{% for i in range(99) %}{% set ns.s = ns.s|tojson %}{% endfor %}".into(), "bytes or items"),
        ("{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('ab') }}".into(), "bytes or items"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s %}{% filter upper %}{{ ns.s }}{{ ns.s }}{% endfilter %}{% endset %}{% endfor %}".into(), ""),
        // Widths.
        ("{{ 'a\nb'|indent(100000000000) }}".into(), "at most 10000"),
        ("{{ 'a\nb'|indent(width=100000000000) }}".into(), "at most 10000"),
        ("{{ messages|tojson(indent=100000000000) }}".into(), "at most 10000"),
        ("{{ '%100000000000d'|format(1) }}".into(), "format"),
        ("{{ '%.100000000000f'|format(1.5) }}".into(), "format"),
        ("{{ '%*d'|format(2000000000, 1) }}".into(), "format"),
        ("{{ '{:>100000000000}'.format('a') }}".into(), "format"),
        ("{{ '{:{}}'.format('a', 2000000000) }}".into(), "format"),
        ("{{ [1]|batch(100000000000, 'x')|list }}".into(), "at most 10000"),
        ("{{ [1]|slice(100000000000)|list }}".into(), "at most 10000"),
        ("{{ 1.5|round(100000000000) }}".into(), "at most 10000"),
        ("{{ 'a' * 100000000 }}".into(), "multiplies constants"),
        ("{{ (0,) * 100000000 }}".into(), "multiplies constants"),
        ("{{ ([0] * 99999) * 99999 }}".into(), "multiplies constants"),
        ("{{ 'a' * (10 ** 8) }}".into(), "multiplies constants"),
        ("{{ 'a' * (1 // (0.1 + 0.2 - 0.3)) }}".into(), "multiplies constants"),
        ("{% set n = 99999999 %}{{ 'a' * n }}".into(), "bytes or items"),
        ("{% set n = 99999999 %}{{ (0,) * n }}".into(), "bytes or items"),
        ("{% set n = 99999999 %}{{ ([0] * n)|list|length }}".into(), "bytes or items"),
        ("{{ range(1000000000)|list }}".into(), "range"),
        // Lists that double, share and nest.
        ("{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}".into(), "limit for this conversation"),
        ("{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}".into(), "MiB"),
        ("{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}{{ ns.l|tojson }}".into(), "MiB"),
        ("{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}".into(), "deep"),
        ("{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = (ns.l,) %}{% endfor %}".into(), "deep"),
        ("{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = dict(a=ns.l) %}{% endfor %}".into(), "deep"),
        ("{% set ns = namespace(l=1) %}{% for i in range(99999) %}{% set ns.l = namespace(a=ns.l) %}{% endfor %}{{ ns.l }}".into(), ""),
        ("{% set ns = namespace(l=1) %}{% set ns.l = ns %}{{ ns }}".into(), ""),
        ("{% set ns = namespace(l=1) %}{% set ns.l = ns %}{{ ns|tojson }}".into(), ""),
        ("{% set ns = namespace(l=1) %}{% set ns.l = [ns] %}{{ ns.l == ns.l }}{{ [ns]|string }}".into(), ""),
        ("{% set ns = namespace(l=[3, 1]) %}{% for i in range(99999) %}{% set ns.l = ns.l|reverse %}{% endfor %}{{ ns.l|list }}".into(), ""),
        ("{% set ns = namespace(l=[3, 1]) %}{% for i in range(99999) %}{% set ns.l = ns.l|map('int') %}{% endfor %}{{ ns.l|list }}".into(), ""),
        ("{% set ns = namespace(l=[3, 1]) %}{% for i in range(99999) %}{% set ns.l = ns.l|chain([1]) %}{% endfor %}{{ ns.l|list|length }}".into(), ""),
        ("{% set ns = namespace(l=[3, 1]) %}{% for i in range(99999) %}{% set ns.l = ns.l[0:2] %}{% endfor %}{{ ns.l|list }}".into(), ""),
        ("{% set ns = namespace(l=[3, 1]) %}{% for i in range(99999) %}{% set ns.l = ns.l|select %}{% endfor %}{{ ns.l|list }}".into(), ""),
        ("{% set ns = namespace(l={'a': 1}) %}{% for i in range(99999) %}{% set ns.l = ns.l|items %}{% set ns.l = ns.l|list %}{% endfor %}{{ ns.l }}".into(), ""),
        // Sources.
        (deep("(", ")", 100_000), "words"),
        (deep("[", "]", 100_000), "words"),
        (deep("(", ")", 1900), ""),
        (deep("not ", "", 3900), ""),
        (deep("-", "", 3900), ""),
        (chain("+"), "words"),
        (chain(" ~ "), "words"),
        (chain("."), "words"),
        (chain("|"), "words"),
        (chain(" and "), "words"),
        (format!("{{{{ x{} }}}}", "+x".repeat(1900)), ""),
        (format!("{{{{ x{} }}}}", "[0]".repeat(1300)), ""),
        (format!("{{{{ x{} }}}}", " if x else x".repeat(900)), ""),
        ("{% if x %}".repeat(15_000), ""),
        ("{% for x in y %}".repeat(15_000), ""),
        (format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(19_000)), ""),
        ("{{ x }}".repeat(30_000), "tags"),
        ("x".repeat(600_000), "bytes"),
        ("{{ messages|length(*messages) }}".into(), "arguments with *"),
        ("{% include 'default' %}".into(), ""),
        ("{% extends 'default' %}".into(), ""),
        ("{{ debug() }}".into(), "unknown"),
    ];
    for n in [10, 1000] {
        all.push((
            format!(
                "{{% set a = 'b' * {n} %}}{}",
                "{% set a = a ~ a %}".repeat(40)
            ),
            "",
        ));
    }
    all
}

/// Each ends soon and in little memory: with an error that names the limit, or with a text.
#[test]
fn hostile_templates_end_soon() {
    let all = hostile();
    assert!(all.len() >= 68, "{}", all.len());
    let (mut refused, mut wrong) = (0, Vec::new());
    for (source, word) in &all {
        let short: String = source.chars().take(150).collect();
        for messages in [chat(2, 5), chat(4, 10_000)] {
            let began = Instant::now();
            // A thread's usual stack: data are loaded on threads like this one.
            let ended = std::thread::scope(|scope| {
                let work = || match open(source) {
                    Ok(template) => template
                        .render(&messages, None, false)
                        .map(|r| r.text.len())
                        .map_err(|e| e.to_string()),
                    Err(e) => Err(e.to_string()),
                };
                let thread = std::thread::Builder::new().stack_size(2 << 20);
                let thread = thread.spawn_scoped(scope, work).unwrap();
                thread.join().expect("no panic")
            });
            let took = began.elapsed();
            if took > Duration::from_secs(2) {
                println!("{took:?}: {short}");
            }
            assert!(took < Duration::from_secs(60), "{took:?}: {short}");
            match ended {
                Err(e) if e.contains(word) => refused += 1,
                Ok(_) if word.is_empty() => {}
                other => wrong.push(format!("{word:?} in {other:?}: {short}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "{} templates, {refused} of {} renderings refused",
        all.len(),
        2 * all.len()
    );
    assert!(refused >= 100, "{refused}");
}

/// A template of the shape of Qwen's, and one that looks through all messages for each.
const REAL: [&str; 2] = [
    "{%- if tools %}{{- '<|im_start|>system\n' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{%- endif %}\
     {%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}\
     {%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}\
     {%- if ns.multi_step_tool and message.role == 'user' and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}{%- set ns.multi_step_tool = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}\
     {%- for message in messages %}{%- if message.role == 'assistant' and '</think>' in message.content %}{%- set content = message.content.split('</think>')[-1].lstrip('\n') %}{%- else %}{%- set content = message.content %}{%- endif %}\
     {{- '<|im_start|>' + message.role + '\n' + content|trim + '<|im_end|>' + '\n' }}{%- endfor %}\
     {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
    "{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.n = 0 %}{% for o in messages %}{% if o.role == m.role %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}\
     {% set ns.text = ns.text ~ m.role ~ ns.n ~ m.content %}{% endfor %}{{ ns.text }}",
];

/// What real templates use is far below the bounds, for short and for long conversations.
#[test]
fn bounds_lie_far_above_real_templates() {
    for (turns, bytes) in [
        (1, 10),
        (6, 400),
        (2000, 200),
        (20, 20_000),
        (1, 400_000),
        (10_000, 40),
    ] {
        let messages = chat(turns, bytes);
        for source in REAL.iter().take(if turns > 2000 { 1 } else { 2 }) {
            let program = Program::new(source, &SyntaxConfig::default()).unwrap();
            let mut engine = super::super::chat::engine(0);
            let values = 3 * turns;
            let bounds = Bounds::of(turns, values, turns * (bytes + 20));
            engine.set_fuel(Some(bounds.fuel));
            let variables = Value::from_pairs([("messages", Value::from(Serde(&messages)))]);
            let (text, spent) = program.render(&engine, variables, bounds);
            let (text, fuel, work) = (text.unwrap(), spent.fuel, spent.work);
            assert!(text.len() >= turns * (bytes - 1));
            println!(
                "{turns} turns of {bytes} bytes: fuel {fuel} of {}, work {work} of {}, all {} of {}",
                bounds.fuel,
                bounds.work,
                spent.units(),
                bounds.honest
            );
            assert!(5 * fuel < bounds.fuel, "fuel {fuel} of {}", bounds.fuel);
            assert!(2 * work < bounds.work, "work {work} of {}", bounds.work);
            assert!(
                spent.units() < bounds.honest,
                "{} of {}",
                spent.units(),
                bounds.honest
            );
        }
    }
}

/// Guards change no text: the same template without them says the same.
#[test]
fn guarded_programs_say_the_same() {
    let messages = chat(3, 20);
    for source in [
        "{{ 2 * 3 }}{{ 'ab' * 2 }}{{ [1] * 2 }}{{ 2.5 * 2 }}{{ -7 // 2 }}{{ 2 ** 3 }}",
        "{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% else %}none{% endfor %}",
        "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}!",
        "{% for x in [] %}{{ x }}{% else %}none{% endfor %}",
        "{% macro m(a, b='y') %}[{{ a }}{{ b }}]{% endmacro %}{{ m('x') }}{{ m(b='1', a='2') }}",
        "{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
        "{% macro m() %}<{{ caller(1) }}>{% endmacro %}{% call(n) m() %}{{ n }}{% endcall %}",
        "{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}{{ x is string }}{{ x is not mapping }}",
        "{{ 1 < 2 < 3 }}{{ 3 in [1, 2] or 'a' in 'cat' }}{{ 1 not in [1] }}{{ 1 if false else 2 }}",
        "{{ {'a': 1, 'b': [2]}|tojson(indent=1) }}{{ messages|tojson }}",
        "{{ ['b', 'a']|sort|join(', ') }}{{ 'a-b'.split('-') }}{{ x is defined }}{{ x|default('d') }}",
        "{% for a in [1, 2] %}{% for b in ['x', 'y'] %}{{ a }}{{ b }}{{ loop.last }}{{ loop.index0 }}{% endfor %}{% endfor %}",
        "{% filter upper %}abc{% endfilter %}{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ messages[-1].role }}",
        "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{% endif %}{% endfor %}",
        "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + m.content|length %}{% endfor %}{{ ns.a }}{{ ns }}",
        "{{ dict(a=1, b='x') }}{{ range(3)|list }}{{ (1, 'a') }}{{ messages|map(attribute='role')|list }}",
        "{% with a = 1, b = 'x' %}{{ a }}{{ b }}{% endwith %}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
        "{% for k, v in {'a': 1, 'b': 2}|items %}{{ k }}={{ v }};{% endfor %}{{ {'a': 1}.items()|list }}{{ {'a': 1}.get('b', 3) }}",
        "{{ '%s and %d'|format('x', 3) }}{{ '{} {:>4}'.format('x', 3) }}{{ 'a\nb'|indent(2) }}{{ 1.25|round(1) }}",
        "{{ undefined_thing }}{{ undefined_thing.x }}",
        "{{ raise_exception('no') }}",
        "{% block a %}x{% endblock %}{{ self.a() }}",
        "{% set a, b = [1, 2] %}{{ a }}{{ b }}{% if a and not b or a %}y{% endif %}{{ none is none }}{{ 'x' ~ 1 ~ 'y' }}",
    ] {
        let mut engine = super::super::chat::engine(0);
        engine.set_syntax(super::super::chat::syntax());
        engine.add_template("default", source).unwrap();
        let variables = Value::from_pairs([("messages", Value::from(Serde(&messages)))]);
        let plain = engine.get_template("default").unwrap().render(variables);
        let guarded = open(source).unwrap().render(&messages, None, false);
        match (plain, guarded) {
            (Ok(plain), Ok(guarded)) => assert_eq!(guarded.text, plain, "{source}"),
            (Err(plain), Err(RecordProblem::Render { reason, .. })) => {
                let plain = plain.to_string();
                assert_eq!(
                    reason.split(" (in").next(),
                    plain.split(" (in").next(),
                    "{source}"
                );
            }
            (plain, guarded) => panic!("{source}: {plain:?} and {guarded:?}"),
        }
    }
}

/// minijinja 3.0.5 panics over the first three.
#[test]
fn what_is_empty_can_be_read_backwards() {
    for (source, want) in [
        ("{{ messages[::-1]|length }}{{ messages[::-2] }}", "0[]"),
        ("{{ messages[5:1:-1]|list }}", "[]"),
        ("{% set s = messages|join %}<{{ s[::-1] }}>", "<>"),
        (
            "{% set s = 'a' ~ 'bc' %}{{ s[::-1] }}{{ s[1:] }}{{ s[:-1] }}",
            "cbabcab",
        ),
        (
            "{% set l = [1] + [2, 3] %}{{ l[::-1] }}{{ l[::2] }}{{ l[-1:] }}",
            "[3, 2, 1][1, 3][3]",
        ),
    ] {
        let rendered = open(source).expect(source).render(&[], None, false);
        assert_eq!(rendered.expect(source).text, want, "{source}");
    }
}

#[test]
fn a_panic_of_the_engine_is_the_templates_error() {
    let mut engine = super::super::chat::engine(0);
    engine.add_filter("boom", |_: Value| -> Value { panic!("out of range") });
    let program = Program::new("{{ 1|boom }}", &super::super::chat::syntax()).expect("it compiles");
    let (rendered, _) = program.render(&engine, Value::UNDEFINED, Bounds::of(1, 1, 1));
    let error = rendered.expect_err("it is refused").to_string();
    assert!(
        error.contains("cannot be rendered") && error.contains("out of range"),
        "{error}"
    );
}
