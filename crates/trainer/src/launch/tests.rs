//! What environments say, and what ranks may differ in.

use super::*;

fn found(all: &[(&str, &str)]) -> Result<Option<Launch>, String> {
    let var = |name: &str| {
        let found = all.iter().find(|v| v.0 == name);
        found.map(|v| v.1.to_owned())
    };
    Launch::found(var).map_err(|e| e.to_string())
}

const TORCHRUN: [(&str, &str); 6] = [
    ("RANK", "1"),
    ("WORLD_SIZE", "2"),
    ("LOCAL_RANK", "1"),
    ("LOCAL_WORLD_SIZE", "2"),
    ("MASTER_ADDR", "127.0.0.1"),
    ("MASTER_PORT", "29500"),
];

const SRUN: [(&str, &str); 6] = [
    ("SLURM_JOB_ID", "77"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_PROCID", "1"),
    ("SLURM_NTASKS", "2"),
    ("SLURM_LOCALID", "1"),
    ("SLURM_NNODES", "1"),
];

fn with(
    all: &[(&'static str, &'static str)],
    name: &'static str,
    value: &'static str,
) -> Vec<(&'static str, &'static str)> {
    let rest = all.iter().copied().filter(|v| v.0 != name);
    rest.chain((!value.is_empty()).then_some((name, value)))
        .collect()
}

#[test]
fn a_launcher_says_which_rank_a_process_is() {
    let world = World { rank: 1, size: 2 };
    for all in [&TORCHRUN, &SRUN] {
        let launch = found(all).expect("whole").expect("a launch");
        assert_eq!(launch.world, world);
    }
    let name = |all: &[(&str, &str)]| found(all).expect("whole").expect("a launch").name;
    assert_eq!(name(&TORCHRUN), name(&with(&TORCHRUN, "RANK", "0")));
    assert_ne!(
        name(&TORCHRUN),
        name(&with(&TORCHRUN, "MASTER_PORT", "29501"))
    );
    assert_ne!(name(&SRUN), name(&with(&SRUN, "SLURM_STEP_ID", "1")));
    // What torchrun says counts where srun started it.
    assert_eq!(name(&[&SRUN[..], &TORCHRUN].concat()), name(&TORCHRUN));
}

#[test]
fn one_process_alone_and_a_batch_script_are_no_launch() {
    assert_eq!(found(&[]), Ok(None));
    assert_eq!(found(&[("RANK", "0"), ("WORLD_SIZE", "1")]), Ok(None));
    for step in ["", "4294967291", "batch"] {
        assert_eq!(
            found(&with(&SRUN, "SLURM_STEP_ID", step)),
            Ok(None),
            "{step}"
        );
    }
    assert_eq!(found(&with(&SRUN, "SLURM_NTASKS", "1")), Ok(None));
}

const MANY: &str = "1000000000000";

#[test]
fn several_hosts_and_half_an_environment_are_refused() {
    let cases = [
        (with(&TORCHRUN, "LOCAL_WORLD_SIZE", "1"), "several hosts"),
        (with(&TORCHRUN, "LOCAL_RANK", ""), "LOCAL_RANK"),
        (with(&TORCHRUN, "MASTER_PORT", ""), "MASTER_PORT"),
        (with(&TORCHRUN, "RANK", "2"), "rank 2 of 2"),
        (
            with(
                &with(&TORCHRUN, "WORLD_SIZE", MANY),
                "LOCAL_WORLD_SIZE",
                MANY,
            ),
            "1000000000000 ranks",
        ),
        (with(&SRUN, "SLURM_NTASKS", "17"), "17 ranks"),
        (with(&TORCHRUN, "RANK", "one"), "RANK is 'one'"),
        (with(&SRUN, "SLURM_NNODES", "2"), "several hosts"),
    ];
    for (all, word) in cases {
        let told = found(&all).expect_err(word);
        assert!(told.contains(word), "{word}: {told}");
    }
}

#[test]
fn what_ranks_disagree_about_is_named() {
    let own = json!({ "version": "1", "run": { "a": { "b": 1, "c": [1, 2] }, "d": null } });
    assert_eq!(agree(3, &own, &own), Ok(()));
    let mut other = own.clone();
    other["run"]["a"]["c"] = json!([1, 3]);
    let told = agree(3, &own, &other).expect_err("differs");
    assert!(
        told.contains("'a.c' is [1,3] on rank 3, [1,2] on rank 0"),
        "{told}"
    );
    other = own.clone();
    other["version"] = json!("2");
    let told = agree(3, &own, &other).expect_err("differs");
    assert!(
        told.contains("rank 3 is lowtide 2, rank 0 lowtide 1"),
        "{told}"
    );
    let told = agree(1, &own, &json!({ "version": "1", "error": "no such file" }));
    assert_eq!(told, Err("rank 1: no such file".to_owned()));
    // What cannot be read at all is another version.
    agree(1, &own, &Value::Null).expect_err("differs");
}

#[test]
fn each_rank_needs_a_gpu_of_its_own_and_all_alike() {
    let of = |gpu: Value| json!({ "version": "1", "run": {}, "gpu": gpu });
    let (a, b) = (json!(["H100", "0:1"]), json!(["H100", "0:2"]));
    let all = |gpus: &[&Value]| -> Result<(), String> {
        let all: Vec<Value> = gpus.iter().map(|&gpu| of(gpu.clone())).collect();
        apart(&all)
    };
    assert_eq!(all(&[&a, &b]), Ok(()));
    assert_eq!(all(&[&Value::Null, &Value::Null]), Ok(()));
    let error = all(&[&b, &a, &a]).expect_err("one GPU");
    assert!(
        error.contains("ranks 1 and 2 have the same GPU (0:1)"),
        "{error}"
    );
    let error = all(&[&a, &json!(["A100", "0:2"])]).expect_err("unlike");
    assert!(
        error.contains("rank 1 has as GPU: A100, rank 0: H100"),
        "{error}"
    );
    let error = all(&[&a, &Value::Null]).expect_err("one has none");
    assert!(
        error.contains("rank 1 has as GPU: none, rank 0: H100"),
        "{error}"
    );
}
