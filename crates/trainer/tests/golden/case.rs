//! A file of tensors and settings that PyTorch wrote, and what they are a case of.

use super::*;

/// A file of golden tensors, shape and bytes by name; and `train.rows_chunk`, by which it is computed.
pub struct Case(pub BTreeMap<String, (Vec<u64>, Vec<u8>)>, pub u32);

impl Case {
    pub fn open(model: &str, case: &str) -> Self {
        let path = folder(model).join(format!("{case}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = File::open(&path).expect("just read");
        let header = SafetensorsHeader::read(&path, file, bytes.len() as u64).expect("a header");
        let tensor = |t: lowtide_model::StoredTensor| {
            let part = &bytes[t.begin as usize..(t.begin + t.bytes) as usize];
            (t.name, (t.shape, part.to_vec()))
        };
        Self(header.tensors.into_iter().map(tensor).collect(), 0)
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.0.get(name).unwrap_or_else(|| panic!("no {name}")).1
    }

    pub fn i32s(&self, name: &str) -> Vec<i32> {
        let word = |b: &[u8]| i32::from_le_bytes(b.try_into().expect("4 bytes"));
        self.bytes(name).chunks_exact(4).map(word).collect()
    }

    pub fn f32s(&self, name: &str) -> Vec<f64> {
        f32s(self.bytes(name))
    }

    pub fn f64s(&self, name: &str) -> Vec<f64> {
        let word = |b: &[u8]| f64::from_le_bytes(b.try_into().expect("8 bytes"));
        self.bytes(name).chunks_exact(8).map(word).collect()
    }

    pub fn setting(&self, name: &str) -> f64 {
        self.f64s(&format!("settings.{name}"))[0]
    }

    /// (M, B, T); M is 1 where there is no axis of micro-batches. Pairs have no axis at all: sources, then targets.
    pub fn batch(&self) -> Batch {
        let shape = &self.0["tokens"].0;
        let n = shape.len();
        if n == 1 {
            return stacks::BATCH;
        }
        Batch {
            micro_batch: shape[n - 2] as u32,
            seq: shape[n - 1] as u32,
            accumulate: if n == 3 { shape[0] as u32 } else { 1 },
            target: 0,
        }
    }

    pub fn inputs(&self) -> Vec<Micro> {
        let rows = self.batch().input_rows() as usize;
        let [tokens, labels, positions, doc_start] =
            ["tokens", "labels", "positions", "doc_start"].map(|n| self.i32s(n));
        let cut = |all: &[i32], m: usize| all[m * rows..(m + 1) * rows].to_vec();
        (0..tokens.len() / rows)
            .map(|m| Micro {
                tokens: cut(&tokens, m),
                labels: cut(&labels, m),
                positions: cut(&positions, m),
                doc_start: cut(&doc_start, m),
            })
            .collect()
    }

    pub fn hyper(&self, step: u64) -> Hyper {
        let settings = self.optimizer().name.about().settings.iter();
        let new = Hyper::new(self.setting("lr") as f32, step);
        settings.fold(new, |h, s| h.with(s.key, self.setting(s.key) as f32))
    }

    /// AdamW unless the case has what only another optimizer reads.
    pub fn optimizer(&self) -> Optimizer {
        let mut optimizer = Optimizer::default();
        if self.0.contains_key("settings.decay_rate") {
            optimizer.name = OptimizerName::Adafactor;
        }
        optimizer
    }

    /// What a case with projectors trains.
    pub fn lsp(&self) -> Option<Lsp> {
        let mut names = self.0.keys();
        let told = |name: &String| name.starts_with("projector.") || name == "settings.compression";
        names.any(told).then_some(Lsp {
            compression: 4,
            projector: Projector::Random,
        })
    }

    pub fn rule(&self) -> ClipRule {
        let max_norm = self.setting("max_norm") as f32;
        ClipRule {
            mode: Clip::Exact,
            max_norm,
            skip_nonfinite: false,
            spikes: None,
        }
    }
}
