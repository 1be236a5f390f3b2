//! The credentials for one host: those of the request, which come from kubelet, if the host may receive them, or else
//! those of the node (`docker_config`).

use super::auth;
use super::docker_config::{DockerConfig, Source};
use super::helper;
use super::mirror::Host;
use crate::Auth;
use crate::error::{Error, Result};
use causes::with_causes;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Maximum size of `config.json`. One with a thousand registries is smaller.
const MAX_FILE: u64 = 1 << 20;

/// Reads the node's credentials; `None` if there is no such file. Blocks.
pub(crate) fn read(path: &Path) -> Result<Option<Arc<DockerConfig>>> {
    match sys::beneath::regular(path).and_then(|file| sys::file::read_capped(file, MAX_FILE)) {
        Ok(bytes) => {
            let config = DockerConfig::parse(&bytes).map_err(Error::configuration(path))?;
            Ok(Some(Arc::new(config)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::configuration(path)(error)),
    }
}

/// Credentials that are looked up when the host asks for some.
pub(crate) struct Credentials {
    config: Option<Arc<DockerConfig>>,
    /// Registries and repositories to look for in `config`, best first.
    names: Vec<(String, String)>,
    found: OnceCell<Found>,
}

/// What was looked up.
#[derive(Clone, Default)]
pub(crate) struct Found {
    pub(crate) auth: Option<Arc<Auth>>,
    /// Helpers that failed, for errors.
    pub(crate) problem: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Credentials {
    /// `given` are the credentials of the request, `registry` and `repository` those of the image's name.
    pub(crate) fn for_host(
        host: &Host,
        (registry, repository): (&str, &str),
        given: Option<&Auth>,
        config: Option<Arc<DockerConfig>>,
    ) -> Self {
        // A request may name a server and have no credentials for it.
        let given = given.filter(|given| auth::is_usable(given) && auth::may_receive(given, host, registry));
        let found = given
            .map(|given| Found { auth: Some(Arc::new(given.clone())), problem: None })
            .map(OnceCell::from);
        let mut names = Vec::new();
        if host.is_registry {
            names.push((registry.to_owned(), repository.to_owned()));
        }
        // A mirror's URL may have a path, such as that of a project.
        let path = format!("{}/{repository}", project(&host.path));
        names.push((host.authority.clone(), path.trim_start_matches('/').to_owned()));
        names.dedup();
        Self { config, names, found: found.unwrap_or_default() }
    }

    /// The credentials for the host. Helpers are asked at the first call.
    pub(crate) async fn get(&self) -> &Found {
        self.found.get_or_init(|| self.look_up()).await
    }

    async fn look_up(&self) -> Found {
        let mut problems = Vec::new();
        let Some(config) = &self.config else { return Found::default() };
        for source in self.names.iter().flat_map(|(registry, path)| config.sources(registry, path)) {
            let auth = match source {
                Source::File(auth) => Some(auth),
                Source::Helper { helper, server } => match helper::get(&helper, &server).await {
                    Ok(auth) => auth,
                    Err(problem) => {
                        let problem = with_causes(&problem);
                        tracing::warn!(server, problem, "a credential helper failed");
                        problems.push(problem);
                        None
                    }
                },
            };
            if let Some(auth) = auth {
                return Found { auth: Some(Arc::new(auth)), problem: None };
            }
        }
        Found { auth: None, problem: (!problems.is_empty()).then(|| problems.join("; ")) }
    }
}

/// The path of a host without its `v2`: usually its last part; with `override_path` it may be the first instead.
fn project(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let parts = match &parts[..] {
        [project @ .., "v2"] | ["v2", project @ ..] => project,
        parts => parts,
    };
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::project;

    #[test]
    fn the_project_of_a_path_has_no_v2_and_keeps_its_own_name() {
        for (path, expected) in [
            ("/v2", ""),
            ("", ""),
            ("/proxy/hub/v2", "proxy/hub"),
            ("/v2/hub/", "hub"),
            ("/projv2", "projv2"),
            ("/v2proxy/hub", "v2proxy/hub"),
            ("/a/v2/b", "a/v2/b"),
        ] {
            assert_eq!(project(path), expected, "{path}");
        }
    }
}
