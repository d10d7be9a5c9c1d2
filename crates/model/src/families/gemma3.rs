//! Gemma 3, its text models: norms around attention and MLP and of each head, all of which add 1 to their weights,
//! scaled embeddings, GeGLU, windows in most layers, which have rotary positions of their own.

use lowtide_workload::{Dtype, Family, Layers, LocalRope, ModelShape, Rope, RopeScaling, Scales};
use serde_json::{Map, Value, json};

use super::gemma2::{AROUND, read_scalar, scalar, window_keys};
use super::like_llama::{self, Absent, Act};
use super::{Allows, Architecture, Layer, Mlp, Norm, Norms, gemma, rope};
use crate::ModelError;
use crate::config_json::keys::{Config, MULTIPLIER, bad, unsupported};
use crate::describe::check::wrong;
use crate::params::List;

pub(super) struct Gemma3;

const THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;

impl Architecture for Gemma3 {
    fn types(&self) -> &'static [&'static str] {
        &["gemma3_text"]
    }

    fn parse(
        &self,
        c: &Config<'_>,
        _: &str,
        name: &str,
        longest: u32,
    ) -> Result<ModelShape, ModelError> {
        let absent = Absent {
            kv_heads: Some(4),
            head_dim: Some(256),
            max_positions: 131_072,
            norm_eps: 1e-6,
            eps_key: "rms_norm_eps",
            tied: true,
            theta: THETA,
            act: Act {
                key: "hidden_activation",
                names: &["gelu_pytorch_tanh", "gelu_new"],
                expected: "gelu_pytorch_tanh",
            },
            longrope: &[],
            partial: None,
        };
        // Rotary positions are read below: there are two of them.
        let mut rest = c.map.clone();
        for key in ["rope_scaling", "rope_parameters", "rope_theta"] {
            rest.remove(key);
        }
        let rest = Config { map: &rest };
        let shape = like_llama::parse(&rest, Family::Gemma3, name, &absent)?;
        if c.flag("use_bidirectional_attention", false)? {
            let key = "use_bidirectional_attention";
            return Err(unsupported(key, &Value::Bool(true), "false"));
        }
        // Transformers reads this key and caps nothing.
        if let Some(cap) = c.get("attn_logit_softcapping") {
            return Err(unsupported("attn_logit_softcapping", cap, "null"));
        }
        let sliding = match like_llama::sliding(c, shape.layers)? {
            Some(sliding) => sliding,
            None => {
                let pattern = c.size_or("sliding_window_pattern", 6)?;
                Layers::those(shape.layers, |l| !(l + 1).is_multiple_of(pattern))
            }
        };
        let keys = window_keys(c, &sliding)?;
        let longest = shape.max_positions.min(longest);
        let window = keys.and_then(|keys| like_llama::window(keys, sliding.clone(), longest));
        let scalar = read_scalar(c)?;
        let cap = match c.get("final_logit_softcapping") {
            None => None,
            Some(_) => Some(c.number("final_logit_softcapping", &MULTIPLIER)?),
        };
        let bias = c.flag("attention_bias", false)?;
        let [whole, local] = ropes(c, shape.max_positions)?;
        let local_rope = LocalRope {
            rope: local,
            layers: sliding,
        };
        Ok(ModelShape {
            qkv_bias: bias,
            out_bias: bias,
            qk_norm: true,
            rope: Some(whole),
            local_rope: Some(local_rope).filter(|local| !local.layers.is_empty()),
            window,
            scales: Scales {
                embedding: f64::from(shape.hidden).sqrt(),
                attention: Some(scalar.powf(-0.5)),
                logits_cap: cap,
                ..Scales::default()
            },
            ..shape
        })
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_llama::check(s)?;
        super::all_rotated(s)?;
        if !s.hidden.is_multiple_of(s.heads) {
            let need = format!("a multiple of the {} heads in this family", s.heads);
            return Err(wrong("hidden size", s.hidden, need));
        }
        if s.mlp_bias || s.qkv_bias != s.out_bias {
            let need = "both of attention or none";
            return Err(wrong("places with biases", 1u32, need));
        }
        if !s.qk_norm {
            return Err(wrong("head norms", 0u32, "some in this family"));
        }
        let local = s.local_rope.as_ref();
        if let Some(window) = &s.window
            && local.is_none_or(|local| local.layers != window.layers)
        {
            let need = "the same as with a window in this family";
            return Err(wrong("layers with other rotary positions", 1u32, need));
        }
        let ropes = s.rope.iter().chain(local.map(|local| &local.rope));
        if !ropes.into_iter().all(plain) {
            let need = "none or linear in this family";
            return Err(wrong("scaling of rotary positions", 1u32, need));
        }
        Ok(())
    }

    fn allows(&self) -> Allows {
        Allows {
            local_rope: true,
            ..Allows::default()
        }
    }

    fn norm(&self) -> Norm {
        Norm::RmsPlusOne
    }

    fn scales(&self, s: &ModelShape) -> Scales {
        Scales {
            embedding: f64::from(s.hidden).sqrt(),
            attention: Some(scalar(s).powf(-0.5)),
            logits_cap: s.scales.logits_cap,
            ..Scales::default()
        }
    }

    fn embedding_factor(&self, s: &ModelShape, dtype: Dtype) -> f32 {
        gemma::embedding_factor(s, dtype)
    }

    fn layer(&self, s: &ModelShape, l: u32) -> Layer {
        Layer {
            norm: Norm::RmsPlusOne,
            norms: Norms::Around,
            mlp: Mlp::Geglu,
            ..like_llama::layer(s, l)
        }
    }

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        like_llama::block(list, s, l, &AROUND);
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_llama::config_json(s, "Gemma3ForCausalLM", "gemma3_text");
        config["hidden_activation"] = json!("gelu_pytorch_tanh");
        config["attention_bias"] = json!(s.out_bias);
        config["query_pre_attn_scalar"] = json!(scalar(s) as u64);
        config["final_logit_softcapping"] = json!(s.scales.logits_cap);
        // A window of all positions is none.
        let keys = s.window.as_ref().map_or(s.max_positions, |w| w.keys);
        config["sliding_window"] = json!(keys);
        let local = s.local_rope.as_ref();
        let types = (0..s.layers).map(|l| match local.is_some_and(|r| r.layers.has(l)) {
            true => "sliding_attention",
            false => "full_attention",
        });
        config["layer_types"] = types.collect();
        let theirs = Rope {
            theta: LOCAL_THETA,
            scaling: RopeScaling::None,
            width: None,
        };
        let local = local.map_or(&theirs, |local| &local.rope);
        config["rope_local_base_freq"] = json!(local.theta);
        let keys = config.as_object_mut().expect("an object");
        keys.remove("hidden_act");
        // The older spelling, which more versions read, has no scaling in layers with a window.
        if local.scaling != RopeScaling::None {
            let mut both = Map::new();
            let whole = s.rope.as_ref().unwrap_or(&theirs);
            for (kind, rope) in [("full_attention", whole), ("sliding_attention", local)] {
                both.insert(kind.to_owned(), rope::nested(rope));
            }
            keys.remove("rope_scaling");
            keys.insert("rope_parameters".to_owned(), Value::Object(both));
        }
        // Absent, it is a token that gets no gradient from lookups.
        config["pad_token_id"] = Value::Null;
        config
    }
}

/// Whether rotary positions are scaled as the family's models have them.
fn plain(rope: &Rope) -> bool {
    matches!(rope.scaling, RopeScaling::None | RopeScaling::Linear(_))
}

/// The rotary positions of layers without a window, and of those with one, as `convert_rope_params_to_dict` of
/// transformers' `Gemma3TextConfig` reads them: `rope_parameters` by kind of layer, or `rope_theta`, `rope_scaling` and
/// `rope_local_base_freq`, each where the former says nothing.
fn ropes(c: &Config<'_>, max_positions: u32) -> Result<[Rope; 2], ModelError> {
    const NEWER: &str = "rope_parameters";
    let kinds = ["full_attention", "sliding_attention"];
    let empty = Map::new();
    let newer = match c.get(NEWER) {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(other) => return Err(bad(NEWER, other, "an object or null")),
    };
    if let Some(value) = c.get(NEWER)
        && !newer.keys().all(|key| kinds.contains(&&**key))
    {
        return Err(unsupported(
            NEWER,
            value,
            "full_attention and sliding_attention",
        ));
    }
    let of = |kind: &str, older: Option<&Map<String, Value>>, base: (&'static str, f64)| {
        let mut all = match newer.get(kind) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(other) => return Err(bad(NEWER, other, "an object for each kind of layer")),
        };
        all.extend(
            older
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone())),
        );
        let key = if older.is_some() {
            "rope_scaling"
        } else {
            NEWER
        };
        let absent = rope::Absent {
            theta: base.1,
            theta_key: base.0,
            max_positions,
            partial: None,
            longrope: &[],
        };
        let rope = rope::settings(c, key, &Config { map: &all }, &absent)?;
        match plain(&rope) {
            true => Ok(rope),
            false => {
                let value = all.get("rope_type").unwrap_or(&Value::Null);
                Err(unsupported(
                    &format!("{key}.rope_type"),
                    value,
                    "default, linear",
                ))
            }
        }
    };
    let older = match c.get("rope_scaling") {
        None => None,
        Some(Value::Object(map)) if map.is_empty() => None,
        // By its older name transformers would not see the kind.
        Some(Value::Object(map)) if !map.contains_key("rope_type") => {
            return Err(ModelError::MissingKey {
                key: "rope_scaling.rope_type".to_owned(),
            });
        }
        Some(Value::Object(map)) => Some(map),
        Some(other) => return Err(bad("rope_scaling", other, "an object or null")),
    };
    let [whole, sliding] = kinds;
    Ok([
        of(whole, older, ("rope_theta", THETA))?,
        of(sliding, None, ("rope_local_base_freq", LOCAL_THETA))?,
    ])
}
