//! Whether crates depend only on what their folder may depend on.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::run;

/// What the crates of a folder may use besides each other. The most particular folder that fits counts.
/// Programs and tests (`app/`, `tests/`, `xtask`) may use every layer; what they may not is in [`NEVER`].
const ALLOWED: [(&str, &[&str]); 9] = [
    ("core/units", &[]),
    ("core/model", &["core/units"]),
    ("core/policy", &["core/units", "core/model"]),
    ("core/frames", &["core/units"]),
    ("os/", &["core/units", "core/model"]),
    ("vmm/", &["core/units", "core/model", "os/"]),
    ("device/", &["core/units", "core/model", "core/frames", "os/", "memory/"]),
    ("guest/agent_proto", &["core/units", "core/model"]),
    ("guest/agent", &["core/units", "core/model", "os/", "guest/agent_proto"]),
];

/// Edges that no reason allows.
const NEVER: [(&str, &str); 4] = [
    // The command speaks to the daemon over its API.
    ("app/cli", "app/daemon"),
    ("app/cli", "core/policy"),
    // What serves a guest decides nothing.
    ("app/backend", "core/policy"),
    ("app/keeper", "core/policy"),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: String,
}

#[derive(Deserialize)]
struct Package {
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    path: Option<String>,
    /// `dev`, `build`, or nothing. Tests may reach further: a fake and the real thing meet in them.
    kind: Option<String>,
}

/// Reads what cargo knows and names every edge that should not be.
pub(crate) fn check() -> Result<()> {
    let text = run::quiet(run::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata")?;
    let wrong = wrong_edges(&edges(&metadata));
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("against the layers:\n  {}", wrong.join("\n  "))
}

/// Folder to folder, as in `("device/balloon", "core/frames")`.
fn edges(metadata: &Metadata) -> Vec<(String, String)> {
    let folder = |path: &str| {
        let below = path.strip_prefix(&metadata.workspace_root).unwrap_or(path);
        below.trim_start_matches('/').trim_end_matches("/Cargo.toml").to_owned()
    };
    let of = |package: &Package| {
        let from = folder(&package.manifest_path);
        let plain = package.dependencies.iter().filter(|dependency| dependency.kind.is_none());
        plain
            .filter_map(|dependency| Some((from.clone(), folder(dependency.path.as_deref()?))))
            .collect::<Vec<_>>()
    };
    metadata.packages.iter().flat_map(of).collect()
}

fn wrong_edges(edges: &[(String, String)]) -> Vec<String> {
    let is_wrong = |from: &str, to: &str| {
        let layer = ALLOWED.iter().find(|(layer, _)| from.starts_with(layer));
        let beyond = layer.is_some_and(|(layer, allowed)| {
            let sibling = layer.ends_with('/') && to.starts_with(layer);
            !sibling && !allowed.iter().any(|layer| to.starts_with(layer))
        });
        beyond || NEVER.contains(&(from, to))
    };
    edges
        .iter()
        .filter(|(from, to)| is_wrong(from, to))
        .map(|(from, to)| format!("{from} uses {to}"))
        .collect()
}

#[cfg(test)]
mod test {
    use super::{check, wrong_edges};

    #[test]
    fn this_workspace_keeps_to_its_layers() {
        check().expect("no edge against the layers");
    }

    #[test]
    fn an_edge_against_the_layers_is_named() {
        let edge = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let wrong = wrong_edges(&[
            edge("core/units", "core/model"),
            edge("os/psi", "core/units"),
            edge("os/psi", "os/procfs"),
            edge("device/balloon", "core/policy"),
            edge("device/balloon", "core/frames"),
            edge("vmm/qmp", "app/api"),
            edge("app/cli", "app/daemon"),
            edge("app/daemon", "core/policy"),
        ]);
        assert_eq!(
            wrong,
            [
                "core/units uses core/model",
                "device/balloon uses core/policy",
                "vmm/qmp uses app/api",
                "app/cli uses app/daemon"
            ]
        );
    }
}
