//! The steps that boot another kernel: every program loads and attaches, the core of the namespace tests holds, and
//! SCTP Services are used through real sockets.

use anyhow::{Result, bail};

use super::{
    build,
    suite::{Suite, environment},
};
use crate::{
    cargo::Artifacts,
    step::{Job, Verdict},
    vm::{self, Console, Kernel, Machine, quote},
};

/// The shell script that runs the tests there, one program after the other.
fn script(artifacts: &Artifacts) -> Result<String> {
    let mut lines = vec!["failed=0".to_owned()];
    for (name, value) in environment(artifacts)? {
        lines.push(format!("export {name}={}", quote(&value)));
    }
    for program in Suite::Namespaces.programs(artifacts) {
        lines.push(format!("{} || failed=1", quote(&program.path.to_string_lossy())));
    }
    lines.push("exit $failed".to_owned());
    Ok(lines.join("\n"))
}

/// Runs the tests under `kernel`.
pub fn run(job: &mut Job, kernel: Kernel) -> Result<Verdict> {
    let artifacts = build(job)?;
    let image = vm::fetch(job.workspace, kernel, &mut |_| {})?;
    let mut machine = Machine::prepare(job.workspace, &image, Console::Output, &script(&artifacts)?)?;
    let emulator = machine.command();
    job.run(emulator)?;
    match machine.result()? {
        0 => Ok(Verdict::Passed),
        code => bail!("the tests in the machine failed (exit code {code})"),
    }
}
