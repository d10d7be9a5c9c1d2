//! Models that classify (`reference/classifier_golden.py`): logits of each document, loss, gradients and ten steps, of
//! documents that lie packed in rows and were computed alone.

use super::*;

const MODELS: [&str; 2] = ["bert", "roberta"];

/// Logits of the documents, (D, classes), in order.
fn logits_of(session: &mut Session, case: &Case) -> Vec<f64> {
    let inputs = case.inputs().remove(0);
    let labels = inputs.labels.clone();
    let logits = session.infer(inputs).expect("logits").logits;
    let rows = logits.chunks_exact(logits.len() / labels.len()).zip(labels);
    let documents = rows.filter(|(_, label)| *label >= 0);
    documents
        .flat_map(|(row, _)| row.iter().copied().map(f64::from))
        .collect()
}

/// What every key is biased by changes no softmax: its gradient is rounding alone.
fn is_rounding(tensor: &str) -> bool {
    tensor.ends_with("key.bias")
}

#[test]
fn classes_of_one_batch() {
    for (gpu, model) in devices()
        .iter()
        .flat_map(|gpu| MODELS.map(|model| (gpu.as_ref(), model)))
    {
        compare(gpu, model, resident);
        compare(gpu, model, offloaded);
    }
}

fn compare(gpu: Option<&Gpu>, model: &str, choose: fn(&Decoder) -> Choice) {
    let case = Case::open(model, "golden");
    let mut session = open(model, &case, Dtype::F32, case.rule(), gpu, choose);
    let (far, _) = distance(&logits_of(&mut session, &case), &case.f32s("logits"));
    assert!(far <= DISTANCE, "{model}: logits {far:.1e}");
    let evaluated = session.evaluate(case.inputs()).expect("evaluated");
    let data = session
        .submit(case.inputs(), case.hyper(1))
        .expect("submitted");
    let outcome = session.outcome(&data).expect("done");
    assert_eq!(outcome.losses[0].1, 4.0, "documents");
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
    let wanted: Vec<&str> = case
        .0
        .keys()
        .filter_map(|k| k.strip_prefix("grad."))
        .collect();
    let have: Vec<&str> = got.keys().map(String::as_str).collect();
    assert_eq!(have, wanted, "{model}: every tensor and no other");
    let mut worst = (0.0f64, "");
    for (tensor, got) in &got {
        if is_rounding(tensor) {
            assert!(got.iter().all(|x| x.abs() < 1e-6), "{model}: {tensor}");
            continue;
        }
        let (far, cosine) = distance(got, &case.f32s(&format!("grad.{tensor}")));
        assert!(far <= DISTANCE, "{model}: gradient of {tensor} {far:.1e}");
        assert!(
            cosine >= 1.0 - 1e-7,
            "{model}: angle of {tensor}, cosine {cosine}"
        );
        worst = if far > worst.0 { (far, tensor) } else { worst };
    }
    eprintln!(
        "{model}: logits {far:.1e}, loss {loss_far:.1e}, norm {norm_far:.1e}, worst gradient {worst:?}"
    );
}

#[test]
fn classes_in_ten_steps() {
    for model in MODELS {
        compare_steps(model, "golden", Dtype::F32, resident);
        compare_steps(model, "golden", Dtype::F32, offloaded);
    }
}

/// In bf16 every number is rounded on the way: gradients are compared by angle and length with those of f32.
#[test]
fn classes_of_one_batch_in_bf16() {
    for (gpu, model) in devices()
        .iter()
        .flat_map(|gpu| MODELS.map(|model| (gpu.as_ref(), model)))
    {
        let case = Case::open(model, "golden");
        let mut session = open(model, &case, Dtype::Bf16, case.rule(), gpu, resident);
        let data = session
            .submit(case.inputs(), case.hyper(1))
            .expect("submitted");
        let outcome = session.outcome(&data).expect("done");
        let loss = relative(outcome.loss(), case.f32s("loss")[0]);
        assert!(loss <= 1e-2, "{model} {gpu:?}: loss {loss:.1e}");
        for (tensor, got) in gradients(&mut session) {
            if is_rounding(&tensor) {
                continue;
            }
            let want = case.f32s(&format!("grad.{tensor}"));
            let (far, cosine) = distance(&got, &want);
            assert!(cosine >= 0.999, "{model} {gpu:?}: {tensor} {cosine}");
            assert!(far <= 5e-2, "{model} {gpu:?}: {tensor} {far:.1e}");
        }
    }
}
