//! Builds programs, each once for one state of what it is made of.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::program::{Kind, Program, Recipe};
use crate::{
    oci::hex,
    setup::Go,
    step::Job,
    ui::clock,
    workspace::{Workspace, exclusive},
};

/// How many builds of one program or image are kept: other checkouts with other versions share the cache.
const KEPT: usize = 3;

/// Built programs.
pub struct Programs {
    paths: Vec<(Program, PathBuf)>,
}

impl Programs {
    /// Where one of them is; its file has the program's usual name.
    ///
    /// # Errors
    /// If it is none of those that were asked for.
    pub fn path(&self, program: Program) -> Result<&Path> {
        let found = self.paths.iter().find(|(built, _)| *built == program);
        found.map(|(_, path)| path.as_path()).with_context(|| format!("{} was not built", program.recipe().name))
    }

    /// The directories of all of them, as in `PATH`.
    ///
    /// # Errors
    /// If one has a colon in its name.
    pub fn search_path(&self) -> Result<OsString> {
        let directories = self.paths.iter().filter_map(|(_, path)| path.parent());
        std::env::join_paths(directories).context("a directory of programs cannot be in a search path")
    }
}

/// Builds what is missing of `wanted`; a matter of milliseconds if nothing is.
///
/// # Errors
/// If no Go is there (`setup::cluster` brings it), or a build fails.
pub fn programs(job: &mut Job, wanted: &[Program]) -> Result<Programs> {
    let go = Go::find(job.workspace).context("no Go that is new enough; `cargo xtask setup --cluster` fetches one")?;
    let mut paths = Vec::new();
    let mut missing = Vec::new();
    for &program in wanted {
        let recipe = program.recipe();
        let home = job.workspace.cluster().join("programs").join(recipe.name);
        let path = home.join(key(job.workspace, &recipe, &go.version)?).join(recipe.name);
        if !path.exists() {
            missing.push((recipe, path.clone()));
        }
        paths.push((program, path));
    }
    let count = missing.len();
    for (number, (recipe, path)) in missing.into_iter().enumerate() {
        job.note(&format!("building {} ({} of {count})", recipe.name, number + 1));
        let started = Instant::now();
        build(job, &go, &recipe, &path).with_context(|| format!("cannot build {}", recipe.name))?;
        let remain = count - number - 1;
        job.report(&format!("{} {}, {remain} to go", recipe.name, clock(started.elapsed())));
    }
    Ok(Programs { paths })
}

/// What a program is made of, in sixteen digits.
fn key(workspace: &Workspace, recipe: &Recipe, go: &str) -> Result<String> {
    let directory = workspace.root.join("tests/cluster").join(recipe.project.directory());
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(go.as_bytes());
    for argument in flags(&directory, recipe)?.iter().map(String::as_str).chain(recipe.packages.iter().copied()) {
        add(argument.as_bytes());
    }
    for file in ["go.mod", "go.sum"].into_iter().map(PathBuf::from).chain(sources(&directory, recipe)?) {
        let path = directory.join(file);
        add(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(hex(&hash.finalize()[..8]))
}

/// The Go files of our own packages among its packages.
fn sources(directory: &Path, recipe: &Recipe) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for package in recipe.packages.iter().filter(|package| package.starts_with('.')) {
        let package = directory.join(package);
        for entry in fs::read_dir(&package).with_context(|| format!("cannot read {}", package.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "go") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Flags of `go build` and `go test`, but for the output.
fn flags(directory: &Path, recipe: &Recipe) -> Result<Vec<String>> {
    let path = directory.join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let module = recipe.project.main_module();
    let version = required(&text, module).with_context(|| format!("{} requires no {module}", path.display()))?;
    let mut linker = if recipe.cgo { "-s -w -linkmode external -extldflags -static" } else { "-s -w" }.to_owned();
    for stamp in recipe.project.stamps(version) {
        linker.push_str(" -X ");
        linker.push_str(&stamp);
    }
    // What describes a program to a debugger is stripped (-s -w) when it is linked: making it is a tenth of the compiler's work.
    let always = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false", "-ldflags"];
    let mut flags = always.map(str::to_owned).to_vec();
    flags.push(linker);
    if !recipe.tags.is_empty() {
        flags.extend(["-tags".to_owned(), recipe.tags.to_owned()]);
    }
    Ok(flags)
}

/// The version of `module` that a `go.mod` requires.
pub fn required<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim_start().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten().filter(|version| version.starts_with('v'))
    })
}

fn build(job: &mut Job, go: &Go, recipe: &Recipe, path: &Path) -> Result<()> {
    let home = path.parent().context("no directory")?;
    let builds = home.parent().context("no directory")?;
    let _mine = exclusive(&builds.with_extension("lock"))?;
    if path.exists() {
        // Somebody else was at it.
        return Ok(());
    }
    // Nobody sees it before it is whole.
    let unfinished = home.with_extension(format!("unfinished-{}", process::id()));
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished).with_context(|| format!("cannot create {}", unfinished.display()))?;
    compile(job, go, recipe, &unfinished.join(recipe.name)).inspect_err(|_| {
        let _ = fs::remove_dir_all(&unfinished);
    })?;
    fs::rename(&unfinished, home).with_context(|| format!("cannot create {}", home.display()))?;
    prune(builds);
    Ok(())
}

fn compile(job: &mut Job, go: &Go, recipe: &Recipe, output: &Path) -> Result<()> {
    let directory = job.workspace.root.join("tests/cluster").join(recipe.project.directory());
    let flags = flags(&directory, recipe)?;
    let command = |verb: &[&str]| {
        let mut command = go.command();
        command.args(verb).args(&flags).current_dir(&directory);
        if recipe.cgo {
            command.env("CGO_ENABLED", "1");
        }
        command
    };
    // With -v, `go build` names packages as it compiles them: a sign of life.
    let mut build = command(&["build", "-v"]);
    match recipe.kind {
        Kind::Program => {}
        Kind::Directory => fs::create_dir(output)?,
        Kind::Test => {
            // `go test` names none, so what the test imports is compiled first.
            let mut list = go.command();
            list.args(["list", "-mod=readonly", "-f", r#"{{join .TestImports "\n"}}"#]).args(recipe.packages);
            let imports = crate::process::output(list.current_dir(&directory))?;
            build.args(imports.lines());
            job.run(build)?;
            build = command(&["test", "-c"]);
        }
    }
    build.arg("-o").arg(output).args(recipe.packages);
    job.run(build)
}

/// Removes all but the newest builds below `home`, and what builds that were ended left there.
pub fn prune(home: &Path) {
    let Ok(entries) = fs::read_dir(home) else { return };
    let mut builds: Vec<(SystemTime, PathBuf)> =
        entries.flatten().filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    builds.sort();
    let (unfinished, mut finished): (Vec<_>, Vec<_>) =
        builds.into_iter().partition(|(_, path)| path.extension().is_some());
    finished.truncate(finished.len().saturating_sub(KEPT));
    let abandoned = unfinished
        .into_iter()
        .filter(|(modified, _)| modified.elapsed().is_ok_and(|age| age > Duration::from_hours(24)));
    for (_, path) in finished.into_iter().chain(abandoned) {
        let _ = fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::required;

    #[test]
    fn the_required_version_is_read() {
        let text = "module x\n\nrequire a.b/c v1.2.3\n\nrequire (\n\ta.b/d v0.1.0 // indirect\n)\n\n\
                    replace (\n\ta.b/e => a.b/e v0.2.0\n)\ntool a.b/f\n";
        assert_eq!(required(text, "a.b/c"), Some("v1.2.3"));
        assert_eq!(required(text, "a.b/d"), Some("v0.1.0"));
        assert_eq!(required(text, "a.b/e"), None);
        assert_eq!(required(text, "a.b/f"), None);
    }
}
