//! The steps that boot another kernel: every program loads and attaches, the core of the namespace tests holds, and
//! SCTP Services are used through real sockets.

use anyhow::{Result, bail};

use super::{kit::Kit, suite::Failures};
use crate::{
    cargo::TEST_PACKAGE,
    e2e::selection::Sample,
    step::{Job, Verdict},
    vm::{self, Console, Kernel, Machine, quote},
};

/// Test programs of [`TEST_PACKAGE`] that run there, and tests of theirs that do not, because an emulated machine is too
/// slow for what they measure.
const CORE: &[(&str, &[&str])] = &[
    ("attach_hooks", &["a_removed_hook_is_back_within_a_second"]),
    ("attach_migration", &[]),
    ("prog_run", &[]),
    ("socket_hooks", &[]),
    ("routing", &["a_load_is_accounted_for_to_the_last_request"]),
    ("links", &[]),
    (
        "layer2",
        &[
            "a_link_that_is_named_is_the_only_one",
            "an_address_is_defended_against_a_host_that_takes_it",
            "an_address_that_another_host_has_is_not_announced",
            "an_agent_that_is_killed_and_started_again_is_not_noticed",
            "of_two_nodes_one_answers_for_each_address",
        ],
    ),
    (
        "kube_proxy",
        &[
            "it_refuses_while_kube_proxy_runs_or_nobody_serves",
            "it_waits_for_connections_that_netfilter_translates",
            "nothing_breaks_where_others_translate_too",
        ],
    ),
    ("ipvs", &[]),
    ("services", &["bridged_pods_host_sockets_behind_a_firewall_beside_the_bridge", "routed_pods_all_sockets"]),
];
/// Those of them that show whether a kernel takes the programs and has their hooks.
const HOOKS: &[&str] = &["attach_hooks"];
/// Those that no build machine's kernel can run, or whose programs older kernels treat differently.
const OLD: &[&str] = &["socket_hooks", "ipvs"];
/// Those that take three or four minutes there.
const LONG: &[&str] = &["prog_run", "services"];
/// How many of the others a [`Part::Few`] has.
const FEW: usize = 1;

/// How much of [`CORE`] is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// [`HOOKS`].
    Hooks,
    /// Those, [`OLD`], and [`FEW`] of the others, other ones for each commit: what the programs do is tested on this machine's
    /// kernel, too.
    Few,
    /// All of it.
    Whole,
}

impl Part {
    /// The names of its test programs.
    fn programs(self, job: &mut Job) -> Result<Vec<&'static str>> {
        let all = CORE.iter().map(|(name, _)| *name);
        match self {
            Self::Hooks => return Ok(HOOKS.to_vec()),
            Self::Whole => return Ok(all.collect()),
            Self::Few => {}
        }
        let fixed = |name: &str| HOOKS.contains(&name) || OLD.contains(&name);
        let others: Vec<&str> = all.clone().filter(|name| !fixed(name) && !LONG.contains(name)).collect();
        let drawn = Sample { size: FEW, seed: job.workspace.git(&["rev-parse", "HEAD"])? }.of(&others);
        job.report(&format!("of {} this commit has {}", others.join(", "), drawn.join(", ")));
        Ok(all.filter(|name| fixed(name) || drawn.contains(name)).collect())
    }
}

/// What stands before a test program's name in the machine's output.
const MARK: &str = "== ";
/// How often a kernel is started that ends before the first test: now and then the emulator executes an instruction that the kernel is
/// about to replace (`int3` in a function's entry, on two processors).
const BOOTS: usize = 3;
/// Requests a second, where a test sends load.
const LOAD: &str = "300";

/// Runs tests under `kernel`.
pub fn run(job: &mut Job, kernel: Kernel, part: Part) -> Result<Verdict> {
    let kit = Kit::build(job)?;
    let image = vm::fetch(job.workspace, kernel, &mut |line| job.note(line))?;
    let programs = part.programs(job)?;
    let script = script(&kit, &programs)?;
    let mut failures = Failures::default();
    let mut boots = 0;
    let machine = loop {
        let mut machine = Machine::prepare(job.workspace, &image, Console::Output, &script)?;
        let emulator = machine.command();
        let mut began = false;
        job.listen(emulator, |line| {
            if let Some(program) = line.strip_prefix(MARK) {
                began = true;
                failures.begin(program);
            }
            failures.take(line);
            if line.starts_with("test result: FAILED") {
                failures.end(line);
            }
            false
        })?;
        boots += 1;
        if began || boots == BOOTS || machine.result().is_ok() {
            break machine;
        }
        job.report("the kernel ended before the first test, and is started once more");
    };
    failures.tell(job)?;
    match machine.result()? {
        0 => Ok(Verdict::Passed),
        code => bail!("the tests in the machine ended with exit code {code}"),
    }
}

/// The shell script that runs the tests there, one program after the other.
fn script(kit: &Kit, programs: &[&str]) -> Result<String> {
    let mut lines = vec!["failed=0".to_owned(), format!("export CULVERT_LOAD={LOAD}")];
    for (name, value) in kit.environment()? {
        lines.push(format!("export {name}={}", quote(&value)));
    }
    for (name, skipped) in CORE.iter().filter(|(name, _)| programs.contains(name)) {
        let mut programs = kit.artifacts.executables.iter();
        let Some(program) = programs.find(|one| one.test && one.package == TEST_PACKAGE && one.name == *name) else {
            bail!("there is no test {name}");
        };
        let mut words = vec![quote(&program.path.to_string_lossy()), "--color never".to_owned()];
        words.extend(skipped.iter().map(|test| format!("--skip {test}")));
        lines.push(format!("cd {}", quote(&program.directory.to_string_lossy())));
        lines.push(format!("echo; echo {}; {} || failed=1", quote(&format!("{MARK}{name}")), words.join(" ")));
    }
    lines.push("exit $failed".to_owned());
    Ok(lines.join("\n"))
}
