#![allow(clippy::print_stdout, reason = "tells what was measured")]
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::super::chat::ChatTemplate;
use super::*;
use crate::error::RecordProblem;

fn open(source: &str) -> ChatTemplate {
    let sources = [("default".to_owned(), source.to_owned())];
    ChatTemplate::new(&sources, vec![], 0, Path::new("t.jinja")).expect(source)
}

fn chat() -> Vec<Json> {
    let message = |role| json!({ "role": role, "content": "a few words of a turn" });
    ["user", "assistant", "user", "assistant"]
        .map(message)
        .to_vec()
}

/// The keys that minijinja's own environment shows in its debug output under `field`.
fn theirs(field: &str) -> BTreeSet<String> {
    let shown = format!("{:?}", minijinja::Environment::new());
    let from = shown.find(&format!("{field}: ")).expect("the field") + field.len() + 2;
    let (open, close) = match shown[from..].chars().next() {
        Some('[') => ('[', ']'),
        _ => ('{', '}'),
    };
    let inner = shown[from..].strip_prefix(open).expect("a list");
    let inner = inner.split(close).next().expect("an end");
    let quoted = inner.split('"').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

/// What minijinja brings has a cost here, one by one; what we add is named too. A new filter, test or
/// function of a later minijinja is not in the environment until it gets a cost, and this test says so.
#[test]
fn everything_that_minijinja_brings_has_a_cost() {
    let ours = |table: Vec<Entry>| -> BTreeSet<String> {
        table.into_iter().map(|entry| entry.0.to_owned()).collect()
    };
    let set = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    };
    assert_eq!(ours(filter_table()), theirs("filters"));
    assert_eq!(ours(test_table()), theirs("tests"));
    // `debug` prints all that a template can see.
    let mut functions = theirs("globals");
    assert!(functions.remove("debug"));
    functions.extend(set(&["raise_exception", "strftime_now"]));
    assert_eq!(ours(function_table(0)), functions);
    let engine = super::super::chat::engine(0);
    let globals: BTreeSet<String> = engine.globals().map(|(name, _)| name.to_owned()).collect();
    functions.insert(METHOD.to_owned());
    assert_eq!(globals, functions);
}

/// Each method with a cost is one, of a string, a list, a mapping or a loop; and there is no other.
#[test]
fn every_method_has_a_cost() {
    for (name, _) in METHODS {
        let known = ["'a'", "[1]", "{'a': 1}", "loop"].iter().any(|value| {
            let source = format!("{{% for x in [1] %}}{{{{ {value}.{name}('a', 'a', 'a', 'a', 'a') }}}}{{% endfor %}}");
            let ended = open(&source).render(&chat(), None, false);
            !ended.is_err_and(|e| e.to_string().contains("unknown method"))
        });
        assert!(known, "{name}");
    }
    for name in [
        "swapcase",
        "zfill",
        "partition",
        "removeprefix",
        "append",
        "pop",
    ] {
        let source = format!("{{{{ 'a'.{name}() }}}}");
        let ended = open(&source).render(&chat(), None, false);
        let error = ended.expect_err(name).to_string();
        assert!(error.contains("unknown method"), "{name}: {error}");
    }
}

const BIG: &str = "{% set x = 'ab' * 400000 %}";
const LIST: &str = "{% set x = range(20000)|list %}";
const ALL: &str = "{% set x = range(99999)|list %}";

/// Templates of a few lines each rendering of which stays, or stayed, within what one may take.
fn hostile() -> Vec<String> {
    let often = |n: usize, setup: &str, body: &str| {
        format!("{setup}{{% for i in range({n}) %}}{body}{{% endfor %}}")
    };
    let mut all = vec![
        often(90_000, BIG, "{% set z = x|length %}"),
        often(90_000, BIG, "{% set z = x|count %}"),
        often(90_000, BIG, "{% for c in x %}{% break %}{% endfor %}"),
        format!("{LIST}{{{{ x | select('in', x) | list | length }}}}"),
        format!("{LIST}{{{{ x | reject('in', x) | list | length }}}}"),
        format!("{LIST}{{{{ (x + ['a'] + x)|sort|list|length }}}}{{{{ x | map('string') | select('in', x) | list | length }}}}"),
        "{% set y = 'ab' * 400000 %}{% set x = [{'a': y}] * 1000 %}{{ x | selectattr('a', 'in', y) | list | length }}".into(),
        "{% set y = 'ab' * 400000 %}{% set x = [{'a': y}] * 1000 %}{{ x | rejectattr('a', 'in', y) | list | length }}".into(),
        often(60, BIG, "{{ x.count('a') }}"),
        often(60, BIG, "{{ x.split('')|length }}"),
        often(60, BIG, "{{ x|split('a')|length }}"),
        often(60, BIG, "{{ (x|replace('a', ' ')).split()|length }}"),
        often(60, BIG, "{{ x|replace('', '-')|length }}"),
        often(60, BIG, "{{ (x|replace('a', '\\n')).splitlines()|length }}"),
        often(60, BIG, "{{ (x|replace('a', '\\n'))|lines|length }}"),
        often(60, ALL, "{{ x|unique|list|length }}"),
        often(60, ALL, "{{ x|sort|list|length }}"),
        often(60, ALL, "{{ x|map('string')|sort(reverse=true)|list|length }}"),
        often(60, ALL, "{{ x|max }}{{ x|min }}{{ x|sum }}"),
        often(60, ALL, "{{ x|batch(3)|list|length }}{{ x|slice(9)|list|length }}"),
        often(60, ALL, "{{ x|zip(x)|list|length }}{{ x|chain(x)|list|length }}"),
        often(60, ALL, "{{ x|join('-')|length }}{{ '-'.join(x)|length }}"),
        often(60, ALL, "{{ x|string|length }}{{ x|tojson|length }}{{ x|pprint|length }}"),
        often(60, ALL, "{{ (x ~ '')|length }}"),
        often(60, ALL, "{{ (x + x)|length }}{{ (x * 2)|length }}"),
        often(60, ALL, "{{ x.count(1) }}{{ x == x[0:] }}{{ 1 in x }}{{ -1 in x }}"),
        often(60, ALL, "{{ x|groupby('a')|list|length }}"),
        often(60, "{% set y = 'ab' * 400000 %}{% set x = [y] * 40 %}", "{{ x|map('upper')|list|length }}"),
        often(60, "{% set y = 'ab' * 400000 %}{% set x = [y] * 40 %}", "{{ x|map('lower')|map('title')|list|length }}"),
        often(60, "{% set y = 'ab' * 400000 %}{% set x = [y] * 40 %}", "{{ x|map('replace', 'a', 'c')|list|length }}"),
        often(60, "{% set y = 'ab' * 400000 %}{% set x = [y] * 40 %}", "{{ x|sort|list|length }}{{ x|unique|list|length }}"),
        often(60, "{% set y = 'ab' * 400000 %}{% set x = [y] * 40 %}", "{{ x|map('int', 1)|list|length }}"),
        often(60, "{% set y = 'ab' * 4000 %}{% set x = [y] * 100 %}", "{{ x|join|length }}{{ x|join('-' * 1000)|length }}"),
        often(60, "{% set y = 'ab' * 4000 %}{% set x = [y] * 100 %}", "{{ x|sum(start='')|length }}"),
        often(60, "{% set y = [[1, 2, 3]] %}{% set x = y * 30000 %}", "{{ x|sum(start=[])|length }}"),
        often(60, "{% set x = 'ab' * 400000 %}{% set y = 'c' * 100000 %}{% set y = y ~ 'ab' %}", "{{ x.strip(y)|length }}"),
        often(60, "{% set x = 'ab' * 400000 %}{% set y = 'c' * 100000 %}{% set y = y ~ 'ab' %}", "{{ (x|trim(y))|length }}"),
        often(60, "{% set x = 'ab' * 400000 %}{% set y = 'c' * 100000 %}{% set y = y ~ 'ab' %}", "{{ x.lstrip(y)|length }}{{ x.rstrip(y)|length }}"),
        often(90_000, "{% set x = range(99999) %}", "{% set z = x[99998] %}"),
        often(90_000, BIG, "{% set z = x[700000] %}{% set z = x[-1] %}"),
        often(90_000, BIG, "{% set z = x[-2:] %}{% set z = x[1:2] %}"),
        often(90_000, ALL, "{% set z = x[1:2] %}"),
        often(90_000, "{% set x = 'ab' * 400000 %}{% set y = {'a': 1} %}", "{% set z = y[x] %}{% set z = y.get(x) %}"),
        often(90_000, "{% set x = 'ab' * 400000 %}{% set y = {'a': 1} %}", "{% set z = x in y %}"),
        often(90_000, "{% set x = 'ab' * 400000 %}{% set y = 'ab' * 400000 %}", "{% set z = x == y %}"),
        often(90_000, "{% set x = 'ab' * 400000 %}{% set y = 'ab' * 300000 %}", "{% set z = y in x %}{% set z = x < y %}"),
        often(90_000, BIG, "{% set z = x.startswith(x) %}{% set z = x.endswith(('b', x)) %}{% set z = x.find('c') %}{% set z = x.rfind('c') %}"),
        often(90_000, BIG, "{% set z = x is upper %}{% set z = x is startingwith(x) %}{% set z = x.isalpha() %}"),
        often(90_000, BIG, "{% set z = x|upper %}{% set z = x.title() %}{% set z = x|e %}{% set z = x|reverse %}{% set z = x|list %}"),
        often(90_000, BIG, "{% set z = x|first %}{% set z = x|last %}{% set z = x|int(default=1) %}{% set z = x|float(default=1) %}"),
        often(90_000, BIG, "{% if loop.changed(x) %}{% endif %}{% set z = loop.cycle(x, x) %}"),
        often(90_000, "", "{% set z = 1.5|round(-300) %}{% set z = 1.5|round(1000) %}"),
        often(90_000, "", "{% set z = '%.1000f'|format(0.1) %}"),
        often(90_000, "", "{% set z = strftime_now('%c %c %c %c') %}"),
        often(90_000, "{% set x = dict(a=1) %}{% set y = range(9999)|list|groupby('a') %}", "{% set z = y[0].list|length %}{% set z = y[0][1]|list %}"),
        often(90_000, "", "{% set z = dict(a=1, b=2, c=3) %}{% set n = namespace(a=z) %}"),
        often(90_000, "", "{% if i %}{% set a = i + 1 %}{% else %}{% endif %}"),
        often(90_000, "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}", "{{ f(20) }}"),
        format!("{}{}{}", "{% with a = 1 %}".repeat(100), often(90_000, "", "{% if b or c or d or e %}{% endif %}"), "{% endwith %}".repeat(100)),
        often(9, "{% set n = 9000 %}{% set x = [messages] * n %}", "{{ x|tojson(indent=9000)|length }}"),
        often(9, "{% set y = '-' * 100000 %}{% set n = 9000 %}{% set x = [messages] * n %}", "{{ x|tojson(separators=(y, y))|length }}"),
        format!("{{% set d = {{'a': 1}} %}}{{% set f = '%(a)9999d' * 60000 %}}{{{{ f|format(d)|length }}}}"),
        format!("{{% set f = '{{0:9999}}' * 90000 %}}{{{{ f.format(1)|length }}}}"),
        format!("{{% set p = 'a.' * 400000 %}}{{% set m = 50000 %}}{{% set n = [{{}}] * m %}}{{{{ n|map(attribute=p)|list|length }}}}{{{{ n|selectattr(p)|list|length }}}}"),
        "{% for c in 'ab' * 400000 %}{% if c == 'c' %}{% endif %}{% endfor %}".into(),
        // Views of views, and chains of what is dropped one inside the other.
        "{% set ns = namespace(l=[1, 2]) %}{% for i in range(90000) %}{% set ns.l = ns.l * 1 %}{% endfor %}{{ ns.l|list|length }}".into(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(90000) %}{% set ns.l = ns.l + [] %}{% endfor %}{{ ns.l|list|length }}".into(),
        "{% set ns = namespace(l={'a': 1}) %}{% for i in range(90000) %}{% set ns.l = ns.l|chain({'b': 1}) %}{% endfor %}{{ ns.l }}".into(),
    ];
    for kept in ["n", "[n]", "{'a': n}", "loop"] {
        all.push(format!(
            "{{% set ns = namespace(l=1) %}}{{% for i in range(90000) %}}{{% set n = namespace() %}}{{% set n.a = ns.l %}}{{% set ns.l = {kept} %}}{{% endfor %}}"
        ));
    }
    all.push("{% set ns = namespace() %}{% set n = namespace(a=ns) %}".into());
    all
}

/// A load of many records ends at a typed error that names the template, after a bounded amount of work,
/// whatever each rendering stays within.
#[test]
fn hostile_templates_end_a_load_within_a_bounded_amount_of_work() {
    let messages = chat();
    // One rendering may go beyond what all may, once.
    let most = (1 << 30) + (64 << 20) + (8 << 20) + 32 * 2_000_000;
    assert!(hostile().len() > 60, "{}", hostile().len());
    for source in hostile() {
        let short: String = source.chars().take(150).collect();
        let template = open(&source);
        let began = Instant::now();
        let work = || {
            (1..=1000).find_map(|n| {
                let ended = template.render(&messages, None, false);
                ended.err().map(|e| (n, e))
            })
        };
        // A thread's usual stack: data are loaded on threads like this one.
        let ended = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(2 << 20);
            let thread = thread.spawn_scoped(scope, work).expect("a thread");
            thread.join().expect("no panic")
        });
        let took = began.elapsed();
        let (n, error) =
            ended.unwrap_or_else(|| panic!("a thousand renderings, not refused: {short}"));
        let per_unit = took.as_nanos() as f64 / template.excess().max(1) as f64;
        println!(
            "{took:?}, {n} renderings, {:.1} ns a unit of {}: {short}\n    {error}",
            per_unit,
            template.excess()
        );
        assert!(
            matches!(
                error,
                RecordProblem::TemplateLimit { .. } | RecordProblem::TemplateWork { .. }
            ),
            "{error}: {short}"
        );
        assert!(error.to_string().contains("t.jinja"), "{error}");
        assert!(template.excess() <= most, "{}: {short}", template.excess());
        // Far more than it takes alone on a quick machine.
        assert!(took < Duration::from_secs(120), "{took:?}: {short}");
    }
}

/// The limit is passed once for all, also where the template goes on after an error.
#[test]
fn a_limit_names_the_construct_and_the_line() {
    let template =
        open("one\n{% set x = range(20000)|list %}\n{{ x | select('in', x) | list | length }}");
    let error = template.render(&chat(), None, false).expect_err("too much");
    assert_eq!(
        error.to_string(),
        "chat template t.jinja, line 3: filter 'select' with test 'in' makes and looks through more than 64 MiB, the \
         limit for this conversation"
    );
    for n in 0..100_000 {
        let template = &template;
        match template.render(&chat(), None, false) {
            Err(RecordProblem::TemplateLimit { .. }) => {}
            Err(e @ RecordProblem::TemplateWork { .. }) => {
                assert!(n > 10, "{n}");
                assert!(e.to_string().contains("most of it filter 'select'"), "{e}");
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("never refused for good");
}

/// As Jinja2 prints them.
#[test]
fn values_are_printed_and_compared_as_in_python() {
    for (source, want) in [
        (
            "{{ 'x' ~ none ~ true ~ 1.0 ~ ['a'] ~ {'b': 'c'} }}",
            "xNoneTrue1.0['a']{'b': 'c'}",
        ),
        ("{{ 'x' ~ undefined_thing ~ 'y' }}", "xy"),
        (
            "{{ ['a'] + ['b', none] }}{{ [1] * 2 }}",
            "['a', 'b', None][1, 1]",
        ),
        (
            "{{ none is iterable }}{{ 3 is iterable }}{{ '' is iterable }}{{ x is iterable }}{{ {} is iterable }}",
            "FalseFalseTrueTrueTrue",
        ),
        (
            "{% set m = {'a': 1}|chain({'b': 2}) %}{{ m.a }}{{ m['b'] }}",
            "12",
        ),
    ] {
        let rendered = open(source).render(&chat(), None, false).expect(source);
        assert_eq!(rendered.text, want, "{source}");
    }
}

/// A number that a text tells is no width.
#[test]
fn long_numbers_beside_a_format_are_text() {
    for (source, want) in [
        ("{{ '%s of 20240726' | format('x') }}", "x of 20240726"),
        ("{{ '123456: %5d' | format(7) }}", "123456:     7"),
        ("{{ '%s, 100000 %s' | format('a', 'b') }}", "a, 100000 b"),
    ] {
        let rendered = open(source).render(&chat(), None, false).expect(source);
        assert_eq!(rendered.text, want, "{source}");
    }
    for source in [
        "{{ '%20240726d' | format(7) }}",
        "{{ '%-20240726s' | format('x') }}",
        "{{ '%.20240726f' | format(7.0) }}",
        "{{ '%(a)20240726d' | format(a=7) }}",
        "{{ '%010001d' | format(7) }}",
        "{{ '%5.20240726f' | format(7.0) }}",
    ] {
        let refused = open(source).render(&chat(), None, false).expect_err(source);
        assert!(refused.to_string().contains("width"), "{source}: {refused}");
    }
}
