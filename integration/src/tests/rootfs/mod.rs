//! Assembly of the root file system: symlinks of the image on the paths of mounts, files below /etc, the image's
//! VOLUMEs, devices, users, and the effects that volumes may have on /proc, /dev and the host.

mod bidirectional;
mod devices;
mod links;
mod volumes;

use crate::runner::Test;

pub(super) fn tests() -> Vec<Test> {
    [links::tests(), volumes::tests(), bidirectional::tests(), devices::tests()].concat()
}
