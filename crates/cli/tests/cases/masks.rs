//! Which tokens are supervised under templates of all shapes; where an answer ends; what the export says.

use super::scratch::Scratch;

/// The tokens after "The capital", eight of them if nothing stops.
fn continued(scratch: &Scratch) -> Vec<u64> {
    let ended = scratch.run(&[
        "generate",
        "run.yaml",
        "--json",
        "--prompt",
        "The capital",
        "--max-new-tokens",
        "8",
    ]);
    let answer = ended.fine().json();
    let tokens = answer["tokens"].as_array().expect("tokens");
    tokens
        .iter()
        .filter_map(serde_json::Value::as_u64)
        .collect()
}

#[test]
fn decoding_stops_at_every_eos_token_id_of_the_models_files() {
    let scratch = Scratch::new("eos-is-not-end-of-turn");
    let free = continued(&scratch);
    assert_eq!(free.len(), 8, "{free:?}");
    // A token that does not come before.
    let at = (1..8)
        .find(|&i| !free[..i].contains(&free[i]))
        .expect("two tokens");
    for text in [format!("[1023, {}]", free[at]), free[at].to_string()] {
        scratch.write(
            "m/generation_config.json",
            format!("{{\"eos_token_id\": {text}}}"),
        );
        assert_eq!(continued(&scratch), free[..at], "{text}");
    }
    std::fs::remove_file(scratch.at("m/generation_config.json")).expect("removed");
    let config = scratch.read("m/config.json");
    let with = config.replacen('{', &format!("{{\"eos_token_id\": {},", free[at]), 1);
    scratch.write("m/config.json", with);
    assert_eq!(continued(&scratch), free[..at], "config.json");

    scratch.write("m/generation_config.json", "{\"eos_token_id\": \"</s>\"}");
    scratch
        .run(&["generate", "run.yaml", "--prompt", "The capital"])
        .refused(&["generation_config.json", "eos_token_id"]);
    scratch
        .train(&[])
        .refused(&["generation_config.json", "eos_token_id"]);
}
