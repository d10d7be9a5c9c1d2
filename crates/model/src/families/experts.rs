//! What families with experts share: the router's and the experts' tensors, and the keys of both.

use lowtide_workload::{Experts, Layers, ModelShape};
use serde_json::{Value, json};

use crate::ModelError;
use crate::config_json::keys::{Config, bad, unsupported};
use crate::describe::check::wrong;
use crate::params::{List, Part, Role};

/// What a family's files call them, below the layer's own name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// The part of the name that stands where a dense MLP's does.
    pub at: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

/// Those of Qwen3-MoE, which most later families have too.
pub(super) const PROJ: Names = Names {
    at: "mlp",
    gate: "gate_proj",
    up: "up_proj",
    down: "down_proj",
};

/// The router, and the matrices of all experts of a block: of the first products gate and up of each expert, then
/// those of the next.
pub(super) fn parameters(list: &mut List, s: &ModelShape, of: Experts, layer: &str, names: &Names) {
    let (c, f, count) = (
        u64::from(s.hidden),
        u64::from(s.intermediate),
        u64::from(of.count),
    );
    let at = format!("{layer}.{}", names.at);
    let expert = |e: u64, name: &str| format!("{at}.experts.{e}.{name}.weight");
    let router = format!("{at}.gate.weight");
    list.add(Part::Router, (count, c), Role::Matrix, &router);
    let both = |e| [names.gate, names.up].map(|name| (expert(e, name), f));
    let gate_up = (0..count).flat_map(both).collect();
    list.fused(Part::GateUp, (count * 2 * f, c), Role::Matrix, gate_up);
    let down = (0..count).map(|e| (expert(e, names.down), c)).collect();
    list.fused(Part::Down, (count * c, f), Role::Residual, down);
}

/// What a family takes where a key is absent.
pub(super) struct Absent {
    pub count: u32,
    pub chosen: u32,
}

/// How many experts there are and how many of them a token takes. A loss for the balance between experts is refused:
/// its gradient needs how many tokens each expert got in all layers.
pub(super) fn parse(
    c: &Config<'_>,
    absent: &Absent,
    renormalise: bool,
) -> Result<Experts, ModelError> {
    // Transformers takes either name of any such family.
    let names = ["num_local_experts", "num_experts"];
    let [local, other] = names.map(|key| c.size_or_null(key));
    let count = match (local?, other?) {
        (Some(a), Some(b)) if a != b => {
            let value = c.get(names[1]).unwrap_or(&Value::Null);
            return Err(bad(
                names[1],
                value,
                "the number that num_local_experts says",
            ));
        }
        (Some(n), _) | (None, Some(n)) => n,
        (None, None) => absent.count,
    };
    let weight = c.get("router_aux_loss_coef").and_then(Value::as_f64);
    if c.flag("output_router_logits", false)? && weight != Some(0.0) {
        let key = "output_router_logits";
        let supported =
            "false, or a router_aux_loss_coef of 0: no loss balances the load of experts";
        return Err(unsupported(key, &Value::Bool(true), supported));
    }
    Ok(Experts {
        count,
        chosen: c.size_or("num_experts_per_tok", absent.chosen)?,
        renormalise,
    })
}

/// A window of `keys` in every layer, and `layer_types` that say nothing else: these families do not read them.
pub(super) fn windows_everywhere(
    c: &Config<'_>,
    layers: u32,
    keys: Option<u32>,
) -> Result<Option<(u32, Layers)>, ModelError> {
    let all = Layers::those(layers, |_| keys.is_some());
    if super::like_llama::sliding(c, layers)?.is_some_and(|types| types != all) {
        let value = c.get("layer_types").unwrap_or(&Value::Null);
        let supported =
            "sliding_attention in every layer with a sliding_window, full_attention without";
        return Err(unsupported("layer_types", value, supported));
    }
    Ok(keys.map(|keys| (keys, all)))
}

/// Whether every layer or none has a window.
pub(super) fn check(s: &ModelShape) -> Result<(), ModelError> {
    super::like_llama::check(s)?;
    super::all_rotated(s)?;
    match s.window.is_some() && !s.all_windows() {
        true => {
            let need = "none or all in this family";
            Err(wrong("number of layers with a window", 1u32, need))
        }
        false => Ok(()),
    }
}

/// The keys that [`parse`] reads.
pub(super) fn config_json(config: &mut Value, s: &ModelShape, count: &str) {
    let Some(of) = s.experts else { return };
    config[count] = json!(of.count);
    config["num_experts_per_tok"] = json!(of.chosen);
    config["output_router_logits"] = json!(false);
}
