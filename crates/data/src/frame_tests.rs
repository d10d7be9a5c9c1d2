use super::super::turns::{Turns, end_of_turn};
use super::super::{ChatTemplate, testing};
use super::*;

fn with<T>(source: &str, ask: impl FnOnce(&ChatTemplate, &Tokenizer) -> T) -> T {
    let tokenizer = testing::tokenizer().with_chat_template(source).unwrap();
    ask(tokenizer.chat_template().unwrap(), &tokenizer)
}

fn frame(source: &str) -> Result<Frame, String> {
    with(source, |template, tokenizer| {
        let turns = Turns::new(template, tokenizer);
        turns.frame().cloned().map_err(str::to_owned)
    })
}

fn stops(source: &str) -> Vec<String> {
    with(source, |template, tokenizer| {
        let turns = Turns::new(template, tokenizer);
        let stops = turns.frame().unwrap().stops(tokenizer);
        stops.into_iter().map(str::to_owned).collect()
    })
}

const MESSAGES: &str =
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>\n\n{% endfor %}";
const PROMPT: &str = "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}";

#[test]
fn a_frame_says_what_stands_around_a_turn() {
    let plain = frame(&format!("{MESSAGES}{PROMPT}")).unwrap();
    let want = Frame {
        header: Some("<|im_start|>assistant ".into()),
        header_follows: true,
        end: "<|im_end|>\n\n".into(),
        end_goes_on: false,
        tail: "<|im_end|>\n\n".into(),
        tail_has_header: false,
        end_stops: true,
    };
    assert_eq!(plain, want);
    let once = frame(&format!(
        "{MESSAGES}{PROMPT}{{% if not add_generation_prompt %}}</s>{{% endif %}}"
    ));
    let tail = "<|im_end|>\n\n</s>".to_owned();
    assert_eq!(
        once.unwrap(),
        Frame {
            tail,
            ..want.clone()
        }
    );
    let always = frame(&format!("{MESSAGES}<|im_start|>assistant "));
    let tail = "<|im_end|>\n\n<|im_start|>assistant ".to_owned();
    let want = Frame {
        header: None,
        header_follows: false,
        tail,
        tail_has_header: true,
        ..want
    };
    assert_eq!(always.unwrap(), want);
}

#[test]
fn decoding_stops_where_a_turn_can_end() {
    let (chatml, eos) = (format!("{MESSAGES}{PROMPT}"), "{{ eos_token }}");
    assert_eq!(stops(&chatml), ["<|im_end|>"]);
    // What stands behind the end is never reached.
    assert_eq!(stops(&format!("{MESSAGES}{eos}")), ["<|im_end|>"]);
    assert_eq!(
        stops(&format!("{MESSAGES}<|im_start|>assistant ")),
        ["<|im_end|>"]
    );
    // Nor text behind it.
    let over = chatml.replace("<|im_end|>\n\n", "<|im_end|> (over)\n\n");
    assert_eq!(stops(&over), ["<|im_end|>"]);
    let frame_of = frame(&over).unwrap();
    assert_eq!(
        (frame_of.end.as_str(), frame_of.end_goes_on),
        ("<|im_end|>", true)
    );
    // Another end in the last turn, whether a prompt for generation is asked for or not.
    let always = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}{% if loop.last and m.role == 'assistant' \
                  %}</s>{% else %}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<s>assistant \
                  {% endif %}";
    assert_eq!(stops(always), ["<|im_end|>", "</s>"]);
    // The same where the others' end cannot be distinguished from the user's header.
    let own = format!(
        "{{% if messages[0].role != 'system' %}}<s>system Be of use<|im_end|>{{% endif %}}{always}"
    );
    let own = own.replace(
        "<s>{{ m.role }} ",
        "{{ '<s>' if m.role == 'assistant' }}{{ m.role }} ",
    );
    let refused = frame(&own).unwrap_err();
    assert!(refused.contains("where the others end"), "{refused}");
    // Another end in the last turn, as gpt-oss has it.
    let last = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}{% if loop.last and not \
                add_generation_prompt %}</s>{% else %}<|im_end|>{% endif %}{% endfor %}{% if \
                add_generation_prompt %}<s>assistant {% endif %}";
    assert_eq!(stops(last), ["<|im_end|>", "</s>"]);
    // Text turns: the last token of all is where the model learns to stop.
    let text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}";
    assert_eq!(
        stops(&format!(
            "{text}{{% if add_generation_prompt %}}assistant: {{% else %}}{eos}{{% endif %}}"
        )),
        ["</s>"]
    );
    assert!(
        stops(&format!(
            "{text}{{% if add_generation_prompt %}}assistant: {{% endif %}}"
        ))
        .is_empty()
    );
}

#[test]
fn a_prompt_ends_with_the_header_also_where_the_template_ignores_the_flag() {
    let user = [message("user", "hi")];
    let prompt = |source: &str| {
        with(source, |template, tokenizer| {
            Turns::new(template, tokenizer).prompt(&user, None).unwrap()
        })
    };
    let want = "<|im_start|>user hi<|im_end|>\n\n<|im_start|>assistant ";
    assert_eq!(prompt(MESSAGES), want);
    assert_eq!(prompt(&format!("{MESSAGES}{PROMPT}")), want);
    assert_eq!(prompt(&format!("{MESSAGES}<|im_start|>assistant ")), want);
    let marked = MESSAGES.replace(
        "{{ m.content }}<|im_end|>",
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}",
    );
    // `trim_blocks` takes the newline behind a block.
    assert_eq!(prompt(&marked), want.replace("\n\n", "\n"));
    // White space is the model's to say, as in training.
    let inst = "{% for m in messages %}{{ '[I]' ~ m.content ~ '[/I]' if m.role == 'user' else ' ' ~ m.content ~ '</s>' }}{% endfor %}";
    assert_eq!(prompt(inst), "[I]hi[/I]");
}

#[test]
fn an_end_that_is_not_marked_is_reported() {
    let unmarked = |source: &str| {
        let tokenizer = testing::tokenizer().with_chat_template(source).unwrap();
        end_of_turn(&tokenizer).unwrap().unwrap().unmarked
    };
    let marked = |said: &str| MESSAGES.replace("{{ m.content }}<|im_end|>", said);
    assert!(unmarked(&marked(
        "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>"
    )));
    assert!(!unmarked(&marked(
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    )));
    assert!(!unmarked(MESSAGES), "renderings decide");
}

#[test]
fn a_template_that_changes_contents_has_no_frame() {
    for source in [
        "{% for m in messages %}{{ m.content | upper }}</s>{% endfor %}",
        "{% for m in messages %}{{ m.content }} {{ m.content }}</s>{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.content[0] }}</s>{% endfor %}",
        "{{ raise_exception('never') }}",
        "",
    ] {
        assert!(frame(source).is_err(), "{source}");
    }
}

#[test]
fn texts_part_at_tokens() {
    let tokens: Vec<String> = ["<a>", "<a><b>", "<c>"].map(str::to_owned).into();
    let atoms = Atoms(&tokens);
    let of = |text| Vec::from_iter(atoms.of_text(text));
    assert_eq!(of("x<a><b><a>ü"), ["x", "<a><b>", "<a>", "ü"]);
    assert_eq!(
        atoms.common("x<a>y", "x<a>z"),
        None,
        "in the middle of text"
    );
    assert_eq!(atoms.common("x<a>", "x<c>"), Some(1));
    assert_eq!(atoms.common("x<a>", "x<a>z"), Some(4));
    assert_eq!(atoms.common("x<a>y", "x<c>y"), Some(1));
    assert_eq!(atoms.common("<a><b>", "<a>"), Some(0), "a longer token");
    assert_eq!(atoms.common_at_end("1<a>ü", "2<a>ü"), 5);
    assert_eq!(atoms.common_at_end("<c>b>", "<a><b>"), 0);
}
