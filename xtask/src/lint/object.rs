//! The object of the kernel programs, as the dataplane's build script left it.
//!
//! A panic is an endless loop or a dead end in the kernel's eyes: the verifier refuses it with a message that names no
//! line. So no function of `core::panicking` may be left in the object; clippy cannot see that, only the linker can.
//!
//! Nor may `memmove`: it is a loop over bytes, for each packet, and the verifier walks it once more on each way that leads there.

use std::fs;

use anyhow::{Context, Result, bail};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind,
    read::elf::{ElfFile64, ElfSymbol64},
};

use crate::cargo::Artifacts;

/// The module's name in mangled symbols, old style (`4core9panicking`) and new.
const PANICKING: &str = "9panicking";
/// Where the compiler leaves no name mangled, this is what one sees.
const PANICKING_PLAIN: &str = "core::panicking";
/// What the compiler calls to copy what may overlap.
const MEMMOVE: &str = "memmove";

/// Checks the object; the answer is how many programs it has.
pub fn check(artifacts: &Artifacts) -> Result<usize> {
    let path = artifacts.kernel_object()?;
    let data = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = ElfFile64::<LittleEndian>::parse(&*data).with_context(|| path.display().to_string())?;

    let panics: Vec<&str> =
        file.symbols().filter_map(|symbol| symbol.name().ok()).filter(|name| panicking(name)).collect();
    if let Some(first) = panics.first() {
        bail!("{} functions of core::panicking are left in {}, the first is {first}", panics.len(), path.display());
    }
    if calls(&file, MEMMOVE) {
        bail!(
            "{MEMMOVE} is called in {}: `words::copy` of an address that may overlap with where it goes",
            path.display()
        );
    }
    let licence = file.section_by_name("license").context("the object has no licence")?.data()?;
    if licence != b"Dual MIT/GPL\0" {
        bail!("the object's licence is {}", String::from_utf8_lossy(licence));
    }
    if file.section_by_name(".BTF").is_none() {
        bail!("the object has no BTF");
    }
    // What programs share lies in `.text`, also where the verifier is to walk it apart and it has a symbol of its own.
    let shared = file.section_by_name(".text").map(|section| section.index());
    let is_program = |symbol: &ElfSymbol64<'_, '_, LittleEndian>| {
        symbol.kind() == SymbolKind::Text && symbol.is_global() && symbol.section_index() != shared
    };
    let programs = file.symbols().filter(is_program).count();
    if programs == 0 {
        bail!("the object has no programs");
    }
    Ok(programs)
}

/// Whether any code in the object calls the function; all of them are there, whether they are called or not.
fn calls(file: &ElfFile64<'_, LittleEndian>, function: &str) -> bool {
    let code = file.sections().filter(|section| section.kind() == SectionKind::Text);
    code.flat_map(|section| section.relocations()).any(|(_, relocation)| match relocation.target() {
        RelocationTarget::Symbol(index) => {
            file.symbol_by_index(index).is_ok_and(|symbol| symbol.name() == Ok(function))
        }
        _ => false,
    })
}

fn panicking(symbol: &str) -> bool {
    symbol.contains(PANICKING) || symbol.contains(PANICKING_PLAIN)
}

#[cfg(test)]
mod tests {
    use super::panicking;

    #[test]
    fn panics_are_seen_in_both_manglings() {
        assert!(panicking("_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE"));
        assert!(panicking("_RNvNtCs1234_4core9panicking9panic_fmt"));
        assert!(!panicking("pod_ingress"));
        assert!(!panicking("_ZN12culvert_ebpf5parse17h0123456789abcdefE"));
    }
}
