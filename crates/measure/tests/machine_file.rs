//! Rates of updates in a machine file: by optimizer, and as files of before have them.

use lowtide_planner::{Lane, Machine};
use lowtide_workload::{Moments, Optimizer, OptimizerName};
use serde_json::{Value, json};

fn file(updates: Value) -> Value {
    let mut file = json!({
        "name": "test", "date": "2026-11-26", "source": "measured",
        "matmul_bf16": 1e12, "matmul_f32": 1e12, "device_memory": 1e11, "op_overhead": 0.0,
        "h2d": 1e10, "d2h": 1e10, "copy_overhead": 0.0, "host_overhead": 0.0, "disk": null,
    });
    let all = file.as_object_mut().unwrap();
    all.extend(updates.as_object().unwrap().clone());
    file
}

fn read(updates: Value) -> Result<Machine, String> {
    serde_json::from_value(file(updates)).map_err(|e| e.to_string())
}

#[test]
fn a_file_of_before_is_read_as_its_one_optimizer() {
    let old = read(json!({
        "host_adamw": 1e9, "device_adamw": 2e9, "adamw_moments": "bf16"
    }))
    .unwrap();
    let new = read(json!({
        "updates": [{"optimizer": "adamw", "moments": "bf16", "host": 1e9, "device": 2e9}]
    }))
    .unwrap();
    assert_eq!(old, new);
    // Without a word about moments they were f32.
    let plain = read(json!({"host_adamw": 1e9, "device_adamw": 2e9})).unwrap();
    let rate = plain.updates.iter().next().unwrap();
    assert_eq!(rate.optimizer, Optimizer::default());
    // What is written is the list.
    let written = serde_json::to_value(&plain).unwrap();
    assert!(written.get("host_adamw").is_none());
    assert_eq!(written["updates"][0]["optimizer"], "adamw");
    assert_eq!(serde_json::from_value::<Machine>(written).unwrap(), plain);
}

#[test]
fn a_file_without_rates_says_which_key_is_missing() {
    for (updates, want) in [
        (json!({}), "updates"),
        (json!({"updates": []}), "updates"),
        (json!({"host_adamw": 1e9}), "device_adamw"),
        (json!({"device_adamw": 1e9}), "host_adamw"),
        (
            json!({"updates": [{"optimizer": "adam", "host": 1e9, "device": 1e9}]}),
            "adam",
        ),
        (
            json!({"updates": [{"optimizer": "lion", "host": 1e9}]}),
            "device",
        ),
    ] {
        let error = read(updates.clone()).unwrap_err();
        assert!(error.contains(want), "{updates}: {error}");
    }
    // A rate that none is, by both its keys.
    let machine = read(json!({"host_adamw": 0, "device_adamw": 1e9})).unwrap();
    let bad = machine.check().unwrap_err().to_string();
    assert!(
        bad.contains("updates.adamw.host") && bad.contains("host_adamw"),
        "{bad}"
    );
}

/// A slip in a key would leave the rate that it means unknown or estimated.
#[test]
fn a_key_that_nothing_reads_is_refused() {
    let updates = json!([{"optimizer": "lion", "host": 1e9, "device": 1e9}]);
    let disk = json!({"read": 1e9, "write": 1e9, "mixed": 1e9, "latency": 0.0});
    let direct = json!({"read": 1e9, "write": 1e9, "mixed": 1e9, "latency": 0.0, "most": 1});
    let with = |at: &Value, key: &str, value: Value| {
        let mut all = at.clone();
        all[key] = value;
        all
    };
    for (keys, unknown) in [
        (json!({"h2d_rate": 1e9}), "h2d_rate"),
        (json!({"disk": with(&disk, "raed", json!(1))}), "raed"),
        (json!({"disk": with(&disk, "direct", direct)}), "most"),
        (
            json!({"net": {"ranks": 2, "rate": 1e9, "latency": 0.0, "host": 1}}),
            "host",
        ),
        (
            json!({"network": {"rate": 1e9, "latency": 0.0, "hosts": 1}}),
            "hosts",
        ),
        (
            json!({"shared": [{"name": "cores", "share": {}, "lanes": 1}]}),
            "lanes",
        ),
        (json!({"together": [{"speed": {}, "lanes": 1}]}), "lanes"),
        (
            json!({"updates": [{"host": 1e9, "device": 1e9, "moment": "bf16"}]}),
            "moment",
        ),
    ] {
        let mut all = json!({ "updates": updates });
        let keys = keys.as_object().unwrap().clone();
        all.as_object_mut().unwrap().extend(keys);
        let error = read(all).unwrap_err();
        let want = format!("unknown field `{unknown}`");
        assert!(error.contains(&want), "{unknown}: {error}");
    }
    read(json!({ "updates": updates, "disk": disk })).expect("all of its keys are known");
}

#[test]
fn each_optimizer_has_its_own_rate_or_one_by_the_bytes_moved() {
    let machine = read(json!({
        "host_adamw": 1e9, "device_adamw": 2e9,
        "updates": [{"optimizer": "lion", "moments": "int8", "host": 4e9, "device": 8e9}],
    }))
    .unwrap();
    let seconds = |name, moments| {
        let optimizer = Optimizer { name, moments };
        [Lane::HOST, Lane::GPU].map(|lane| machine.update(lane, 1_000_000_000, optimizer).0)
    };
    assert_eq!(seconds(OptimizerName::Lion, Moments::Int8), [0.25, 0.125]);
    assert_eq!(seconds(OptimizerName::AdamW, Moments::F32), [1.0, 0.5]);
    // Its own name before another optimizer with its moments: 18 bytes for 12.0625.
    let [host, _] = seconds(OptimizerName::Lion, Moments::F32);
    assert!((host - 0.25 * 18.0 / 12.0625).abs() < 1e-12, "{host}");
}
