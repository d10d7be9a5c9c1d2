//! Changes of texts by the word: run files and chat templates.

use lowtide_config::KEYS;

use super::Random;

/// What a run file's values may be made of, beside the seeds' words.
const YAML: &str = "~ null .nan .inf -.inf 0 -1 1 0x10 0o7 1e3 1e400 4294967295 4294967296 18446744073709551615 \
    18446744073709551616 0.5 100% 3% 24GiB 0.5TB 1e3MiB 99999999TiB 16777216TiB 1B -1GiB true false auto none all [] \
    {} [a,a] {a:1} &a *a !!str !!int | > # --- ... ? : - , ' \" << \u{e9} \u{661} \0";

/// Jinja, as templates write it and as nobody should.
const JINJA: [&str; 62] = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{%-",
    "-%}",
    "{%+",
    "{{-",
    "-}}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% raw %}",
    "{% endraw %}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if loop.first %}",
    "{% elif x is defined %}",
    "{% else %}",
    "{% endif %}",
    "{% set x = messages %}",
    "{% set ns = namespace(x=0) %}",
    "{% set ns.x = ns.x + 1 %}",
    "{% macro f(a, b=2) %}",
    "{% endmacro %}",
    "{{ f(f) }}",
    "{% break %}",
    "{% continue %}",
    "{% with %}",
    "{% endwith %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% call f() %}",
    "{% endcall %}",
    "{% block a %}",
    "{% endblock %}",
    "{{ self.a() }}",
    "{{ caller() }}",
    "{{ range(100000000) }}",
    "{{ 'a' * 1000000 }}",
    "{{ [0] * 999999 }}",
    "{{ 2 ** 62 }}",
    "{{ 9223372036854775807 + 1 }}",
    "{{ -9223372036854775808 // -1 }}",
    "{{ 1 // 0 }}",
    "{{ 1 % 0 }}",
    "{{ 1e308 * 10 }}",
    "{{ messages[::-1] }}",
    "{{ messages[-99] }}",
    "{{ messages[1:][:-1] }}",
    "{{ 'x'[::0] }}",
    "{{ x|tojson(indent=99999999) }}",
    "{{ x|indent(9999999999) }}",
    "{{ '%s%d'|format(1) }}",
    "{{ strftime_now('%Y-%j %s %E') }}",
    "{{ raise_exception('no') }}",
    "{{ x.split('')|last }}",
    "{{ messages|map(attribute='content')|join }}",
    "{{ x|batch(0) }}",
    "{{ x|slice(0) }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list }}",
];

/// Words for a target's texts: those of the seeds and special ones.
pub(super) fn of<'a>(target: &str, seeds: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut all: Vec<String> = match target {
        "run" => {
            let keys = KEYS.iter().flat_map(|k| {
                let last = k.name.rsplit('.').next().unwrap_or(k.name);
                [
                    last.to_owned(),
                    format!("\n{}: ", k.name),
                    format!("\n  {last}: "),
                ]
            });
            keys.chain(YAML.split(' ').map(str::to_owned)).collect()
        }
        _ => JINJA.map(str::to_owned).to_vec(),
    };
    for text in seeds {
        all.extend(text.split_inclusive(['\n', '}', ' ']).map(str::to_owned));
    }
    all.sort();
    all.dedup();
    all
}

/// Where words begin, and the end.
fn borders(text: &str) -> Vec<usize> {
    let mut all = vec![0];
    let mut before = None;
    for (at, c) in text.char_indices() {
        let kind = match c {
            c if c.is_alphanumeric() || c == '_' => 0,
            c if c.is_whitespace() => 1,
            _ => 2,
        };
        if before.is_some_and(|b| b != kind || kind == 2) {
            all.push(at);
        }
        before = Some(kind);
    }
    all.push(text.len());
    all
}

/// The text with one word changed; `None` where it is no text.
pub(super) fn change(bytes: &[u8], words: &[String], random: &mut Random) -> Option<Vec<u8>> {
    let mut text = std::str::from_utf8(bytes).ok()?.to_owned();
    let borders = borders(&text);
    let a = random.below(borders.len());
    let b = (a + 1 + random.below(4)).min(borders.len() - 1);
    let range = borders[a.min(b)]..borders[b];
    match random.below(8) {
        0 => text.replace_range(range, ""),
        1 => {
            let part = text[range].to_owned();
            let to = borders[random.below(borders.len())];
            text.insert_str(to, &part.repeat(1 + random.below(3)));
        }
        2 | 3 => text.replace_range(range, random.of(words)?),
        4 => {
            // A line with another one's indentation, or in another place.
            let mut lines: Vec<&str> = text.split('\n').collect();
            let (from, to) = (random.below(lines.len()), random.below(lines.len()));
            let line = lines.remove(from);
            lines.insert(to.min(lines.len()), line);
            text = lines.join("\n");
        }
        _ => text.insert_str(range.start, random.of(words)?),
    }
    Some(text.into_bytes())
}
