//! Each recipe of docs/recipes/ is a complete run file whose plan fits what its first lines say.

use std::fs;

use crate::common::root;
use lowtide_config::Run;
use lowtide_planner::Tier;
use lowtide_trainer::Planner;

const GIB: u64 = 1 << 30;

/// The recipe, the shape of its model, the GiB of device and host that it is for, and what is held fast in the test, so
/// that the search is short: that the recipe fits is shown by any plan.
const RECIPES: [(&str, &str, u64, u64, &[&str]); 5] = [
    ("0.5b-laptop", "qwen2.5-0.5b", 4, 8, &[]),
    (
        "3b-8gib",
        "qwen2.5-3b",
        8,
        32,
        &[ON_HOST[0], "plan.optimizer=disk", ON_HOST[2], ON_HOST[3]],
    ),
    ("7b-24gib", "qwen2.5-7b", 24, 96, &[]),
    (
        "14b-drive",
        "qwen2.5-14b",
        24,
        64,
        &[
            "plan.weights=disk",
            "plan.optimizer=disk",
            "plan.gradients=disk",
            "plan.inputs=disk",
        ],
    ),
    ("long-context", "qwen2.5-3b", 24, 96, &ON_HOST),
];
const ON_HOST: [&str; 4] = [
    "plan.weights=host",
    "plan.optimizer=host",
    "plan.gradients=host",
    "plan.inputs=host",
];
/// What every plan has here.
const ALL: [&str; 5] = [
    "model.path=",
    "plan.pieces=block",
    "plan.prefetch=0",
    "plan.loop=layer-major",
    "plan.recompute=all",
];

#[test]
fn every_recipe_is_a_whole_run_and_its_plan_fits() {
    let dir = root().join("docs/recipes");
    let mut names: Vec<_> = fs::read_dir(&dir)
        .expect("recipes")
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    names.sort();
    let mut want: Vec<_> = RECIPES.iter().map(|r| format!("{}.yaml", r.0)).collect();
    want.sort();
    assert_eq!(
        names, want,
        "recipes without a row here, or rows without a recipe"
    );
    let path = root().join("examples/machines/rtx4090-12ssd.json");
    for (name, shape, device, host, pins) in RECIPES {
        let file = dir.join(format!("{name}.yaml"));
        let run = Run::load(&file, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
        run.training_ready()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        // A plan does not need the weights, and the file says how to make one without.
        let text = fs::read_to_string(&file).expect("a recipe");
        let plan = format!("lowtide plan {name}.yaml --set model.path= --set model.shape={shape}");
        assert!(text.contains(&plan), "{plan}");
        let mut sets = vec![format!("model.shape={shape}")];
        let fast = if pins.is_empty() { &ALL[..1] } else { &ALL };
        sets.extend(fast.iter().chain(pins).map(|set| (*set).to_owned()));
        if !pins.is_empty() {
            sets.push("optimizer.update=host".to_owned());
        }
        let run = Run::load(&file, &sets).unwrap_or_else(|e| panic!("{name}: {e}"));
        let planner = Planner::of_machine(&run, &path, None);
        let made = planner.and_then(|planner| planner.plan(true));
        let plan = made.unwrap_or_else(|e| panic!("{name}: {e}")).plan;
        for (tier, most) in [(Tier::Device, device), (Tier::Host, host)] {
            let planned = plan.tier(tier).planned_bytes.0;
            assert!(
                planned > 0 && planned <= most * GIB,
                "{name}: {tier:?} {planned}"
            );
        }
        let disk = plan.tier(Tier::Disk).planned_bytes.0;
        assert_eq!(
            disk > 0,
            !run.budget.disk.is_empty(),
            "{name}: a drive that is there for nothing"
        );
    }
}
