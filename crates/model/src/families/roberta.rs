//! RoBERTa: positions begin behind that of the padding token, all tokens have the type 0, and the head is a part of
//! the classifier.

use lowtide_workload::{Family, ModelShape};
use serde_json::{Value, json};

use super::{Allows, Architecture, Layer, Norm, like_bert};
use crate::ModelError;
use crate::config_json::keys::{Config, unsupported};
use crate::params::List;

pub(super) struct Roberta;

impl Architecture for Roberta {
    fn types(&self) -> &'static [&'static str] {
        &["roberta"]
    }

    fn parse(&self, c: &Config<'_>, _: &str, name: &str, _: u32) -> Result<ModelShape, ModelError> {
        let absent = like_bert::Absent {
            vocab: 50_265,
            first_position: |c| {
                let padding = c.whole_or("pad_token_id", 1)?;
                let most = "a number below 1024: positions begin behind it";
                match padding {
                    0..1024 => Ok(padding + 1),
                    _ => Err(unsupported("pad_token_id", &json!(padding), most)),
                }
            },
        };
        like_bert::parse(c, Family::Roberta, name, &absent)
    }

    fn check(&self, s: &ModelShape) -> Result<(), ModelError> {
        like_bert::check(s)
    }

    fn norm(&self) -> Norm {
        Norm::Layer
    }

    fn allows(&self) -> Allows {
        like_bert::allows()
    }

    fn layer(&self, s: &ModelShape, _: u32) -> Layer {
        like_bert::layer(s)
    }

    fn embedding(&self, list: &mut List, s: &ModelShape) {
        like_bert::embedding(list, s, "roberta");
    }

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        like_bert::block(list, s, l, "roberta");
    }

    fn head(&self, list: &mut List, s: &ModelShape) {
        like_bert::head(list, s, "classifier.dense");
    }

    fn lm_head(&self) -> &'static str {
        "classifier.out_proj.weight"
    }

    fn lm_head_bias(&self) -> &'static str {
        "classifier.out_proj.bias"
    }

    fn ignores(&self, name: &str) -> bool {
        let name = name.strip_prefix("roberta.").unwrap_or(name);
        let others = ["lm_head.", "pooler."];
        others.iter().any(|other| name.starts_with(other))
            || name.ends_with("embeddings.position_ids")
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        let mut config = like_bert::config_json(s, "RobertaForSequenceClassification", "roberta");
        let first = s.encoder.map_or(0, |encoder| encoder.first_position);
        config["pad_token_id"] = json!(first.saturating_sub(1));
        config
    }
}
