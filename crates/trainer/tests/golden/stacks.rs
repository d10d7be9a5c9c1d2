//! Models of two stacks (`reference/t5.py`), whole steps on every device: loss, every gradient, ten steps. Logits are
//! compared where every operation runs in order (`crates/model/tests/t5.rs`).

use super::*;

const MODELS: [&str; 2] = ["t5", "t5-v1.1"];

/// That of `reference/t5.py`.
pub const BATCH: Batch = Batch {
    micro_batch: 2,
    seq: 12,
    accumulate: 1,
    target: 9,
};

fn on_all(compare: impl Fn(Option<&Gpu>, &str)) {
    for gpu in devices() {
        for model in MODELS {
            compare(gpu.as_ref(), model);
        }
    }
}

#[test]
fn pairs_of_one_batch() {
    on_all(|gpu, model| {
        compare(gpu, model, resident);
        compare(gpu, model, offloaded);
    });
}

fn compare(gpu: Option<&Gpu>, model: &str, choose: fn(&Decoder) -> Choice) {
    let case = Case::open(model, "golden");
    let mut session = open(model, &case, Dtype::F32, case.rule(), gpu, choose);
    let evaluated = session.evaluate(case.inputs()).expect("evaluated");
    let data = session
        .submit(case.inputs(), case.hyper(1))
        .expect("submitted");
    let outcome = session.outcome(&data).expect("done");
    assert_eq!(
        evaluated.loss().to_bits(),
        outcome.loss().to_bits(),
        "one loss by two ways"
    );
    let loss_far = relative(outcome.loss(), case.f32s("loss")[0]);
    assert!(loss_far <= 1e-5, "{model}: loss {loss_far:.1e}");
    let norm_far = relative(outcome.norm, case.f64s("grad_norms")[0]);
    assert!(norm_far <= 1e-5, "{model}: norm {norm_far:.1e}");

    let got = gradients(&mut session);
    let names = case.0.keys().filter_map(|k| k.strip_prefix("grad."));
    let wanted: Vec<&str> = names.collect();
    let have: Vec<&str> = got.keys().map(String::as_str).collect();
    assert_eq!(have, wanted, "{model}: every tensor and no other");
    let mut worst = (0.0f64, "");
    for (tensor, got) in &got {
        let (far, cosine) = distance(got, &case.f32s(&format!("grad.{tensor}")));
        assert!(far <= DISTANCE, "{model}: gradient of {tensor} {far:.1e}");
        assert!(
            cosine >= 1.0 - 1e-7,
            "{model}: angle of {tensor}, cosine {cosine}"
        );
        worst = if far > worst.0 { (far, tensor) } else { worst };
    }
    eprintln!("{model}: loss {loss_far:.1e}, norm {norm_far:.1e}, worst gradient {worst:?}");
}

#[test]
fn pairs_in_ten_steps() {
    for model in MODELS {
        compare_steps(model, "golden", Dtype::F32, resident);
        compare_steps(model, "golden", Dtype::F32, offloaded);
    }
}

/// In bf16 every number is rounded on the way: the gradient is compared as a whole with that of f32. ReLU turns a
/// number on or off where rounding moves it past zero: with it transformers in bf16 is 0.12 from its own f32, with GELU
/// 0.018.
#[test]
fn pairs_of_one_batch_in_bf16() {
    on_all(|gpu, model| {
        let case = Case::open(model, "golden");
        let mut session = open(model, &case, Dtype::Bf16, case.rule(), gpu, resident);
        let data = session
            .submit(case.inputs(), case.hyper(1))
            .expect("submitted");
        let outcome = session.outcome(&data).expect("done");
        let loss = relative(outcome.loss(), case.f32s("loss")[0]);
        assert!(loss <= 2e-3, "{model} {gpu:?}: loss {loss:.1e}");
        let (mut all, mut wanted) = (Vec::new(), Vec::new());
        for (tensor, got) in gradients(&mut session) {
            all.extend(got);
            wanted.extend(case.f32s(&format!("grad.{tensor}")));
        }
        let (far, cosine) = distance(&all, &wanted);
        eprintln!("{model} in bf16: loss {loss:.1e}, gradient {far:.1e}, cosine {cosine}");
        let limit = if model == "t5" { 0.3 } else { 3e-2 };
        assert!(far <= limit, "{model} {gpu:?}: gradient {far:.1e}");
    });
}
