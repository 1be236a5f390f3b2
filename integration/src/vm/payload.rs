//! The guest's second disk: the files of a run, and the script `job`, which the guest's service executes.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Options;
use crate::expect::ensure;
use crate::isolation::command;

/// Space beside the files, in MiB: what the command may write to its folder.
const SPARE: u64 = 512;

/// Makes the disk as a sparse file at `disk`.
pub(super) fn make(disk: &Path, options: &Options) -> Result<()> {
    let folder = disk.with_extension("files");
    fs::create_dir(&folder)?;
    for path in options.files.iter().chain(&options.deb) {
        let real = fs::canonicalize(path).with_context(|| path.display().to_string())?;
        command("cp", &["-a", &real.display().to_string(), &folder.display().to_string()])?;
    }
    if options.run.is_some() {
        let job = folder.join("job");
        fs::write(&job, script(options)?)?;
        fs::set_permissions(&job, Permissions::from_mode(0o755))?;
    }
    let used = command("du", &["-sm", &folder.display().to_string()])?;
    let used: u64 = used.split_whitespace().next().context("du printed nothing")?.parse()?;
    fs::File::create(disk)?.set_len((used * 5 / 4 + SPARE) << 20)?;
    let (from, to) = (folder.display().to_string(), disk.display().to_string());
    command("mkfs.ext4", &["-q", "-F", "-O", "^has_journal", "-m", "0", "-d", &from, &to])?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// The guest's job: variables, package, command.
fn script(options: &Options) -> Result<String> {
    let mut text = String::from("#!/bin/bash\n");
    for variable in &options.env {
        let (name, value) = variable.split_once('=').with_context(|| format!("no = in --env {variable}"))?;
        ensure!(
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
            "--env {variable}: {name:?} is not the name of a variable"
        );
        writeln!(text, "export {name}='{}'", value.replace('\'', "'\\''"))?;
    }
    if let Some(deb) = &options.deb {
        let name = deb.file_name().and_then(|name| name.to_str()).context("the package has no name")?;
        // Once: the job is run again after a reboot that the command asked for.
        writeln!(text, "[ \"$VM_BOOT\" != 1 ] || DEBIAN_FRONTEND=noninteractive dpkg -i './{name}' || exit")?;
    }
    writeln!(text, "{}", options.run.as_deref().unwrap_or_default())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(words: &[&str]) -> Options {
        Line::parse_from(["vm", "--image", "image"].iter().chain(words)).options
    }

    #[test]
    fn job_has_variables_then_package_then_command() {
        let all = options(&["--env", "A=it's", "--deb", "/x/copepod_1.deb", "--run", "exec true"]);
        let script = script(&all).unwrap();
        let lines: Vec<&str> = script.lines().collect();
        assert_eq!(lines[..2], ["#!/bin/bash", "export A='it'\\''s'"]);
        assert!(lines[2].contains("dpkg -i './copepod_1.deb'"), "{script}");
        assert_eq!(lines[3..], ["exec true"]);
    }

    #[test]
    fn names_that_are_no_variables_are_refused() {
        for wrong in ["A", "=x", "a b=x", "$(x)=y"] {
            assert!(script(&options(&["--env", wrong, "--run", "true"])).is_err(), "{wrong}");
        }
    }

    #[test]
    fn disk_is_a_file_system_with_the_job() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("payload");
        make(&disk, &options(&["--run", "exec true"])).unwrap();
        let listed = command("debugfs", &["-R", "cat job", &disk.display().to_string()]).unwrap();
        assert_eq!(listed, "#!/bin/bash\nexec true\n");
    }
}
