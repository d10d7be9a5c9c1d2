//! What environments say, and what ranks may differ in.

use super::environment::{PORTS, first_host};
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
    let first = with(&SRUN, "SLURM_PROCID", "0");
    assert_eq!(found(&with(&first, "SLURM_NTASKS", "1")), Ok(None));
}

const MANY: &str = "1000000000000";

#[test]
fn unlike_hosts_and_half_an_environment_are_refused() {
    let cases = [
        (with(&TORCHRUN, "LOCAL_WORLD_SIZE", "0"), "as many"),
        (
            with(&with(&TORCHRUN, "WORLD_SIZE", "5"), "LOCAL_RANK", "0"),
            "as many",
        ),
        (
            with(&with(&TORCHRUN, "LOCAL_WORLD_SIZE", "1"), "MASTER_ADDR", ""),
            "MASTER_ADDR is not set",
        ),
        (
            with(
                &with(&TORCHRUN, "LOCAL_WORLD_SIZE", "1"),
                "MASTER_PORT",
                "x",
            ),
            "MASTER_PORT is 'x'",
        ),
        (
            with(
                &with(&TORCHRUN, "LOCAL_WORLD_SIZE", "1"),
                "MASTER_PORT",
                "65535",
            ),
            "LOWTIDE_PORT",
        ),
        (with(&TORCHRUN, "LOCAL_RANK", ""), "LOCAL_RANK"),
        (with(&TORCHRUN, "MASTER_PORT", ""), "MASTER_PORT"),
        (with(&TORCHRUN, "RANK", "2"), "rank 2 of 2"),
        (with(&TORCHRUN, "WORLD_SIZE", "1"), "rank 1 of 1"),
        (with(&TORCHRUN, "WORLD_SIZE", "0"), "rank 1 of 0"),
        (with(&SRUN, "SLURM_NTASKS", "1"), "rank 1 of 1"),
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
        (with(&SRUN, "SLURM_NNODES", "2"), "SLURM_JOB_NODELIST"),
        (
            with(&with(&SRUN, "SLURM_NNODES", "2"), "SLURM_NTASKS", "3"),
            "as many",
        ),
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

#[test]
fn ranks_of_several_hosts_meet_at_the_first() {
    let far = |all: &[(&str, &str)]| {
        let launch = found(all).expect("whole").expect("a launch");
        let far = launch.far.expect("several hosts");
        (launch.hosts, launch.local, far.to_string())
    };
    let one_each = with(&TORCHRUN, "LOCAL_WORLD_SIZE", "1");
    let one_each = with(&one_each, "LOCAL_RANK", "0");
    assert_eq!(far(&one_each), (2, 0, "127.0.0.1:29501".to_owned()));
    let asked = [&one_each[..], &[("LOWTIDE_PORT", "7000")]].concat();
    assert_eq!(far(&asked).2, "127.0.0.1:7000");
    let two = with(&with(&SRUN, "SLURM_NNODES", "2"), "SLURM_LOCALID", "0");
    let two = [&two[..], &[("SLURM_JOB_NODELIST", "node[08-09]")]].concat();
    let (hosts, local, at) = far(&two);
    let (name, port) = at.split_once(':').expect("a port");
    assert_eq!((hosts, local, name), (2, 0, "node08"));
    assert!(PORTS.contains(&port.parse().expect("a number")), "{port}");
    assert_eq!(far(&two), far(&with(&two, "SLURM_PROCID", "0")), "of all");
    for (nodes, first) in [
        ("a", "a"),
        ("a7,b[01-03]", "a7"),
        ("b[01-03],a7", "b01"),
        ("node[008,011-013]-ib", "node008-ib"),
    ] {
        assert_eq!(first_host(nodes).as_deref(), Some(first));
    }
    for nodes in ["", ",", "a[", "a[]"] {
        assert_eq!(first_host(nodes), None, "{nodes}");
    }
}

#[test]
fn ranks_are_dealt_to_hosts_in_order() {
    let of = |hosts: &[(u64, u64)]| {
        let all = hosts
            .iter()
            .map(|&(n, first)| json!({ "host": [n, first] }));
        on_hosts(&all.collect::<Vec<_>>())
    };
    assert_eq!(of(&[(1, 0), (1, 0)]), Ok(()));
    assert_eq!(of(&[(2, 0), (2, 0), (2, 2), (2, 2)]), Ok(()));
    let error = of(&[(2, 0), (1, 0)]).expect_err("unlike");
    assert!(
        error.contains("one of 1 hosts, rank 0 on one of 2"),
        "{error}"
    );
    // As srun deals them with --distribution=cyclic, and 3 and 1.
    for wrong in [[0, 1, 1, 2], [0, 0, 0, 3]] {
        let error = of(&wrong.map(|first| (2, first))).expect_err("out of order");
        let advice = "--ntasks-per-node=2 --distribution=block";
        assert!(error.contains(advice), "{error}");
    }
}

#[test]
fn the_time_that_ranks_wait_for_each_other_is_within_the_watchdogs() {
    let of = |asked| environment::patience_of(asked).map_err(|e| e.to_string());
    assert_eq!(of(None), Ok(Duration::from_secs(150)));
    assert_eq!(of(Some("1")), Ok(Duration::from_secs(1)));
    assert_eq!(of(Some(" 150 ")), Ok(Duration::from_secs(150)));
    for value in ["", "0", "151", "-1", "1.5", "30s"] {
        let text = format!(
            "LOWTIDE_RANK_LIMIT is '{value}', which is no whole number of seconds from 1 to 150"
        );
        assert_eq!(of(Some(value)), Err(text));
    }
}

#[test]
fn ranks_that_would_compute_attention_by_other_kernels_are_refused() {
    assert_eq!(attention_is(1, "cuDNN", "cuDNN"), Ok(()));
    let why = attention_is(3, "cuDNN", "own kernels").expect_err("differs");
    let text = "rank 3 would compute attention by own kernels, rank 0 by cuDNN";
    assert!(why.starts_with(text), "{why}");
}
