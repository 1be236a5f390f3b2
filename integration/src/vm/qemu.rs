//! The command line of the guest's machine.
//!
//! It is emulated (TCG), so that it runs wherever this program does. Kernel and initrd are given directly: no boot loader
//! and no firmware menu take time.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a run's machine is made of.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// Folder with `disk`, `vmlinuz` and `initrd`.
    pub(super) image: &'a Path,
    /// The second disk.
    pub(super) payload: PathBuf,
    /// Parameters for the kernel.
    pub(super) kernel: &'a str,
    /// Memory in MiB.
    pub(super) memory: u32,
    /// Folder for the run's files.
    pub(super) folder: &'a Path,
}

/// The files that the guest's console and its exit code are written to.
#[derive(Debug)]
pub(super) struct Ports {
    /// What kernel and systemd print.
    pub(super) console: PathBuf,
    /// One line, written by the guest when its command has ended.
    pub(super) result: PathBuf,
}

impl Machine<'_> {
    /// The files of [`Self::with_ports`].
    pub(super) fn ports(&self) -> Ports {
        Ports { console: self.folder.join("console"), result: self.folder.join("result") }
    }

    /// The machine with its console on this terminal.
    pub(super) fn with_shell(&self) -> Command {
        let mut command = self.base();
        command.args(["-serial", "mon:stdio"]);
        command
    }

    /// The machine with its console and exit code in [`Self::ports`], and the output of its command on qemu's standard
    /// output. That port is a `file` to qemu: it would end a `stdio` port when standard input ends, and the guest would
    /// wait for ever.
    pub(super) fn with_ports(&self) -> Command {
        let ports = self.ports();
        let mut command = self.base();
        command.args(["-serial", &format!("file:{}", ports.console.display())]);
        for (name, path) in [("output", Path::new("/dev/stdout")), ("result", ports.result.as_path())] {
            command.args(["-chardev", &format!("file,id={name},path={}", path.display())]);
            command.args(["-device", &format!("virtserialport,chardev={name},name=vm.{name}")]);
        }
        command.stdin(Stdio::null());
        command
    }

    fn base(&self) -> Command {
        let file = |name: &str| self.image.join(name);
        let mut command = Command::new("qemu-system-x86_64");
        command
            // One thread for both processors: with one each, a kernel that changes its own code (static keys) panics in some
            // boots, because a processor that translates the bytes just before they change keeps the old translation.
            .args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2"])
            .args(["-m", &self.memory.to_string(), "-nodefaults", "-display", "none"])
            .arg("-kernel")
            .arg(file("vmlinuz"))
            .arg("-initrd")
            .arg(file("initrd"))
            .args([
                "-append",
                &format!("root=/dev/vda rw console=ttyS0 quiet mitigations=off {}", self.kernel),
            ])
            .args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
            // What the guest writes to its disk goes to a deleted file in this folder.
            .env("TMPDIR", self.folder);
        for (id, path, options) in [("root", &file("disk"), "snapshot=on,"), ("payload", &self.payload, "")] {
            let drive = format!("file={},format=raw,if=none,id={id},{options}cache=unsafe", path.display());
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive={id}")]);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_second_disk_keeps_what_is_written() {
        let machine = Machine {
            image: Path::new("/image"),
            payload: PathBuf::from("/run/payload"),
            kernel: "one=two",
            memory: 1024,
            folder: Path::new("/run"),
        };
        let command = machine.with_ports();
        let words: Vec<&str> = command.get_args().filter_map(|word| word.to_str()).collect();
        let drives: Vec<&&str> = words.iter().filter(|word| word.starts_with("file=")).collect();
        assert!(matches!(drives[..], [root, payload]
            if root.contains("/image/disk,") && root.contains("snapshot=on") && !payload.contains("snapshot")));
        assert!(words.iter().any(|word| word.ends_with(" one=two")), "{words:?}");
    }
}
