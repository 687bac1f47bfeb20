//! What ginkgo's JUnit says of each spec.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use quick_xml::{
    Reader, XmlVersion,
    events::{BytesStart, Event},
};

/// How a spec ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All held.
    Passed,
    /// Something did not, and what ginkgo says of it first.
    Failed(String),
    /// It began, found that it cannot be run here, and said why.
    Skipped(String),
    /// The run did not select it.
    Unselected,
}

/// A spec and how it ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Spec {
    /// Its full name, without labels.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// The specs of a report; also suite-wide steps that failed.
pub fn read(path: &Path) -> Result<Vec<Spec>> {
    let text = fs::read_to_string(path).with_context(|| format!("no report {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Vec<Spec>> {
    let mut reader = Reader::from_str(text);
    let mut specs = Vec::new();
    let mut current: Option<Spec> = None;
    loop {
        match reader.read_event()? {
            Event::Start(tag) if tag.name().as_ref() == "testcase" => current = Some(spec(&tag)?),
            Event::Empty(tag) if tag.name().as_ref() == "testcase" => specs.push(spec(&tag)?),
            Event::Start(tag) | Event::Empty(tag) => {
                if let (Some(spec), Some(outcome)) = (&mut current, outcome(&tag)?) {
                    spec.outcome = outcome;
                }
            }
            Event::End(tag) if tag.name().as_ref() == "testcase" => specs.extend(current.take()),
            Event::Eof => break,
            _ => {}
        }
    }
    specs.retain(|spec| spec.name.starts_with(IT) || matches!(spec.outcome, Outcome::Failed(_)));
    for spec in &mut specs {
        spec.name = plain(&spec.name).to_owned();
    }
    Ok(specs)
}

/// What a name begins with if it is a spec's, not a step's of the whole suite.
const IT: &str = "[It] ";

/// A spec's name without its kind and the list of labels that ginkgo adds.
fn plain(name: &str) -> &str {
    let name = name.strip_prefix(IT).unwrap_or(name);
    match name.rsplit_once(" [sig-network") {
        Some((plain, labels)) if labels.ends_with(']') => plain,
        _ => name,
    }
}

fn spec(tag: &BytesStart) -> Result<Spec> {
    let time = attribute(tag, "time")?.parse().context("time")?;
    Ok(Spec { name: attribute(tag, "name")?, outcome: Outcome::Passed, seconds: time })
}

fn outcome(tag: &BytesStart) -> Result<Option<Outcome>> {
    Ok(match tag.name().as_ref() {
        "failure" | "error" => Some(Outcome::Failed(attribute(tag, "message")?)),
        "skipped" => Some(match attribute(tag, "message")?.strip_prefix("skipped - ") {
            Some(why) => Outcome::Skipped(why.to_owned()),
            None => Outcome::Unselected,
        }),
        _ => None,
    })
}

fn attribute(tag: &BytesStart, name: &str) -> Result<String> {
    let Some(attribute) = tag.try_get_attribute(name)? else { return Ok(String::new()) };
    Ok(attribute.normalized_value(XmlVersion::Implicit1_0)?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="5"><testsuite name="e2e" tests="5">
<testcase name="[SynchronizedBeforeSuite]" classname="e2e" status="passed" time="1.5"></testcase>
<testcase name="[It] [sig-network] Services should work [Conformance] [sig-network, Conformance]" status="passed" time="12.25">
  <system-err>&gt; Enter [It]</system-err>
</testcase>
<testcase name="[It] [sig-network] HostPort a &quot;b&quot; [LinuxOnly] [sig-network]" status="failed" time="3">
  <failure message="timed out &lt;nil&gt;" type="failed">[FAILED] timed out</failure>
</testcase>
<testcase name="[It] [sig-network] DNS x [sig-network]" status="skipped" time="0.1">
  <skipped message="skipped - Only supported for providers [gce]"></skipped>
</testcase>
<testcase name="[It] [sig-network] DNS y [sig-network]" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
</testsuite></testsuites>"#;

    #[test]
    fn each_outcome_is_told_from_the_others() {
        let specs = parse(REPORT).unwrap();
        let short: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.outcome.clone())).collect();
        assert_eq!(
            short,
            [
                ("[sig-network] Services should work [Conformance]", Outcome::Passed),
                (r#"[sig-network] HostPort a "b" [LinuxOnly]"#, Outcome::Failed("timed out <nil>".to_owned())),
                ("[sig-network] DNS x", Outcome::Skipped("Only supported for providers [gce]".to_owned())),
                ("[sig-network] DNS y", Outcome::Unselected),
            ]
        );
        assert!((specs[0].seconds - 12.25).abs() < f64::EPSILON);
    }

    #[test]
    fn a_failed_step_of_the_suite_counts() {
        let report = REPORT.replace(
            r#"status="passed" time="1.5"></testcase>"#,
            r#"status="failed" time="1.5"><failure message="no nodes"/></testcase>"#,
        );
        assert_eq!(parse(&report).unwrap()[0].outcome, Outcome::Failed("no nodes".to_owned()));
    }

    #[test]
    fn a_cut_report_is_an_error() {
        assert!(parse(&REPORT[..REPORT.len() / 2]).is_err());
    }
}
