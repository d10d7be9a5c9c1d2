//! BERT: a type for each of two texts; its head is the pooler and a classifier.

use lowtide_workload::{Family, ModelShape};
use serde_json::Value;

use super::{Allows, Architecture, Layer, Norm, like_bert};
use crate::ModelError;
use crate::config_json::keys::Config;
use crate::params::List;

pub(super) struct Bert;

impl Architecture for Bert {
    fn types(&self) -> &'static [&'static str] {
        &["bert"]
    }

    fn parse(&self, c: &Config<'_>, _: &str, name: &str, _: u32) -> Result<ModelShape, ModelError> {
        let absent = like_bert::Absent {
            vocab: 30_522,
            first_position: |_| Ok(0),
        };
        like_bert::parse(c, Family::Bert, name, &absent)
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
        like_bert::embedding(list, s, "bert");
    }

    fn block(&self, list: &mut List, s: &ModelShape, l: u32) {
        like_bert::block(list, s, l, "bert");
    }

    fn head(&self, list: &mut List, s: &ModelShape) {
        like_bert::head(list, s, "bert.pooler.dense");
    }

    fn lm_head(&self) -> &'static str {
        "classifier.weight"
    }

    fn lm_head_bias(&self) -> &'static str {
        "classifier.bias"
    }

    fn typed(&self, s: &ModelShape) -> bool {
        s.encoder.is_some_and(|encoder| encoder.types > 1)
    }

    fn ignores(&self, name: &str) -> bool {
        name.starts_with("cls.") || name.ends_with("embeddings.position_ids")
    }

    fn config_json(&self, s: &ModelShape) -> Value {
        like_bert::config_json(s, "BertForSequenceClassification", "bert")
    }
}
