//! The rows of docs/cni-members.md.

use super::Row;
use super::Status::{Honoured, Ignored, Passed, Refused};

pub(super) const INTRODUCTION: &str = "# Members of CNI

What copepod does with every member that the [CNI specification](https://www.cni.dev/docs/spec/) defines, 0.1.0 to 1.1.0, and
with those of its [conventions](https://www.cni.dev/docs/conventions/). `honoured` changes what copepod does, or copepod gives
it; `passed on` reaches the plugins unchanged; `ignored` and `refused` say why. The tests of `runtime/network/src/members.rs`
write this page and prove each row: they change the member and compare.

Files: `.conflist`, `.conf` and `.json` in `network.conf_dir`; the first by name decides, even if it is invalid, because falling
back to another would put pods on a network that nobody chose. Hidden files are skipped: installers write them first. A file
with `type` and without `plugins` is a single plugin, whatever its name ends in. Names of members are case-sensitive, as the
specification has them; null counts as absent, except for `plugins`.
";

pub(super) const CONFIGURATION: &[Row] = &[
    Row(
        "/cniVersion",
        Honoured,
        "\"1.1.0\"",
        "Absent or empty: 0.1.0, as plugins understand it. A network of versions that are all unknown is refused",
    ),
    Row(
        "/cniVersions",
        Honoured,
        "[\"1.1.0\", \"9.0.0\"]",
        "The newest known version of this and `cniVersion` is used",
    ),
    Row(
        "/name",
        Honoured,
        "\"other\"",
        "1 to 255 letters, digits, `_`, `.`, `-`, beginning with a letter or a digit; others are refused, as it names a folder",
    ),
    Row("/disableCheck", Honoured, "\"True\"", "A boolean, or its name in any case"),
    Row("/disableGC", Honoured, "true", "As `disableCheck`"),
    Row(
        "/loadOnlyInlinedPlugins",
        Honoured,
        "true",
        "Otherwise the plugins in `<name>/*.conf` beside the file are appended, in the order of their names. Refused without `plugins`",
    ),
    Row("/other", Ignored, "2", "Only the members of each plugin reach it"),
    Row("/plugins", Honoured, "[]", "May be absent if the folder has plugins. 1 to 64 in all"),
    Row(
        "/plugins/0/type",
        Honoured,
        "\"other\"",
        "A file name, searched in `network.bin_dirs`. One that is no file name is refused, as it is executed",
    ),
    Row(
        "/plugins/0/capabilities",
        Honoured,
        "{}",
        "Which of the arguments below the plugin gets. It also stays in the plugin's input, as with libcni: plugins that call others read it",
    ),
    Row("/plugins/0/capabilities/portMappings", Honoured, "false", "Only `true` asks for it"),
    Row("/plugins/0/runtimeConfig", Passed, "{}", "Replaced if the plugin gets any capability argument"),
    Row("/plugins/0/runtimeConfig/mac", Passed, "\"y\"", ""),
    Row(
        "/plugins/0/args",
        Passed,
        "{}",
        "Copepod adds no `args.cni`: labels and addresses of CRI have no place there that plugins agree on",
    ),
    Row("/plugins/0/args/cni", Passed, "1", ""),
    Row(
        "/plugins/0/prevResult",
        Ignored,
        "1",
        "The specification reserves it: the first plugin has none, the others get that of the chain",
    ),
    Row(
        "/plugins/0/cni.dev~1x",
        Ignored,
        "2",
        "Members that begin with `cni.dev/` are reserved for the runtime",
    ),
    Row("/plugins/0/name", Ignored, "\"x\"", "Plugins get the network's"),
    Row("/plugins/0/cniVersion", Ignored, "\"1.0.0\"", "Plugins get the network's"),
    Row("/plugins/0/ipMasq", Passed, "false", ""),
    Row("/plugins/0/ipam", Passed, "{}", ""),
    Row("/plugins/0/ipam/type", Passed, "\"dhcp\"", "The plugin finds it, by CNI_PATH"),
    Row("/plugins/0/ipam/subnet", Passed, "\"10.1.0.0/24\"", "As all that the plugin of the type defines"),
    Row("/plugins/0/dns", Passed, "{}", "A pod's resolv.conf is CRI's `dns_config` and nothing else"),
    Row("/plugins/0/dns/nameservers", Passed, "[]", ""),
    Row("/plugins/0/dns/domain", Passed, "\"x\"", ""),
    Row("/plugins/0/dns/search", Passed, "[]", ""),
    Row("/plugins/0/dns/options", Passed, "[]", ""),
    Row("/plugins/0/other", Passed, "2", "As all that plugins define"),
];

pub(super) const PARAMETERS: &[Row] = &[
    Row("/CNI_COMMAND", Honoured, "", "ADD, DEL, CHECK, GC or STATUS; see below"),
    Row("/CNI_CONTAINERID", Honoured, "", "The id of the sandbox; not for GC and STATUS"),
    Row("/CNI_NETNS", Honoured, "", "`/run/netns/cni-<id>`; empty for a DEL whose namespace is gone"),
    Row("/CNI_IFNAME", Honoured, "", "`eth0`; Kubernetes knows no other"),
    Row("/CNI_PATH", Honoured, "", "`network.bin_dirs`"),
    Row(
        "/CNI_ARGS",
        Honoured,
        "",
        "As containerd and CRI-O send them. A pod whose values have `;` or `=` is refused: they would add arguments",
    ),
    Row("/CNI_ARGS/IgnoreUnknown", Honoured, "", "1"),
    Row("/CNI_ARGS/K8S_POD_NAMESPACE", Honoured, "", "`metadata.namespace`"),
    Row("/CNI_ARGS/K8S_POD_NAME", Honoured, "", "`metadata.name`"),
    Row("/CNI_ARGS/K8S_POD_INFRA_CONTAINER_ID", Honoured, "", "The id of the sandbox"),
    Row("/CNI_ARGS/K8S_POD_UID", Honoured, "", "`metadata.uid`"),
    Row("/CNI_ARGS/IP", Ignored, "", "CRI has no address to ask for"),
];

pub(super) const CAPABILITIES: &[Row] = &[
    Row("/portMappings", Honoured, "", "`port_mappings` with a `host_port`; absent if there is none"),
    Row("/portMappings/0/hostPort", Honoured, "", ""),
    Row("/portMappings/0/containerPort", Honoured, "", ""),
    Row("/portMappings/0/protocol", Honoured, "", "`tcp`, `udp` or `sctp`"),
    Row("/portMappings/0/hostIP", Honoured, "", "May be empty"),
    Row(
        "/bandwidth",
        Honoured,
        "",
        "The annotations `kubernetes.io/ingress-bandwidth` and `egress-bandwidth`, quantities from 1k to 1P; a pod with another value is refused, as by containerd",
    ),
    Row("/bandwidth/ingressRate", Honoured, "", "Bits per second"),
    Row("/bandwidth/ingressBurst", Honoured, "", "2^32-1 bits, as containerd gives"),
    Row("/bandwidth/egressRate", Honoured, "", ""),
    Row("/bandwidth/egressBurst", Honoured, "", ""),
    Row("/dns", Honoured, "", "`dns_config`"),
    Row("/dns/servers", Honoured, "", ""),
    Row("/dns/searches", Honoured, "", ""),
    Row("/dns/options", Honoured, "", ""),
    Row("/cgroupPath", Honoured, "", "`linux.cgroup_parent`"),
    Row("/io.kubernetes.cri.pod-annotations", Honoured, "", "All annotations of the pod"),
    Row(
        "/ipRanges",
        Ignored,
        "",
        "CRI has nothing that it could be made of; the pod's range is written into the configuration by the network's own daemon",
    ),
    Row("/ips", Ignored, "", "CRI has no addresses to ask for. Networks read annotations of their own"),
    Row("/mac", Ignored, "", "As `ips`"),
    Row("/infinibandGUID", Ignored, "", "As `ips`"),
    Row(
        "/deviceID",
        Ignored,
        "",
        "CRI does not tell which device of a container belongs to a network. Multus gives it to its delegates",
    ),
    Row("/aliases", Ignored, "", "Names of pods are Kubernetes' DNS's work"),
];

pub(super) const RESULTS: &[Row] = &[
    Row(
        "/cniVersion",
        Refused,
        "\"0.5.0\"",
        "An unknown version. Another known one is converted to the network's for the next plugin; absent, empty or no text: the network's",
    ),
    Row(
        "/interfaces",
        Refused,
        "[]",
        "An index of `ips` that does not exist. Null and absent are an empty list",
    ),
    Row("/interfaces/1/name", Honoured, "\"net1\"", "The pod's addresses are those of `eth0`"),
    Row(
        "/interfaces/1/sandbox",
        Honoured,
        "\"\"",
        "Of several with this name, those in a sandbox are the pod's; without any, all are",
    ),
    Row("/interfaces/1/mac", Passed, "\"y\"", ""),
    Row("/interfaces/1/mtu", Passed, "1400", ""),
    Row("/interfaces/1/socketPath", Passed, "\"/t\"", ""),
    Row("/interfaces/1/pciID", Passed, "\"y\"", ""),
    Row(
        "/ips",
        Honoured,
        "null",
        "At most 64. ADD fails if there is no address for `eth0`; the first is the pod's, the others its additional ones, in this order",
    ),
    Row(
        "/ips/0/address",
        Honoured,
        "\"10.0.0.3/24\"",
        "With its prefix length. Refused if it is none, 0.0.0.0, `::` or a multicast address",
    ),
    Row("/ips/0/interface", Honoured, "0", "Absent or null: the pod's"),
    Row("/ips/0/gateway", Passed, "\"10.0.0.9\"", ""),
    Row(
        "/ips/0/version",
        Ignored,
        "\"6\"",
        "Until 0.4.0; the address tells it. The next plugin gets it if its version has it",
    ),
    Row("/routes", Passed, "null", "The plugins set them"),
    Row("/routes/0/dst", Passed, "\"10.0.0.0/8\"", ""),
    Row("/routes/0/gw", Passed, "\"10.0.0.9\"", ""),
    Row("/routes/0/mtu", Passed, "9", ""),
    Row("/routes/0/advmss", Passed, "9", ""),
    Row("/routes/0/priority", Passed, "9", ""),
    Row("/routes/0/table", Passed, "9", ""),
    Row("/routes/0/scope", Passed, "9", ""),
    Row(
        "/dns",
        Passed,
        "null",
        "A pod's resolv.conf is CRI's `dns_config` and nothing else, as with containerd and CRI-O",
    ),
    Row("/dns/nameservers", Passed, "[]", ""),
    Row("/dns/domain", Passed, "\"x\"", ""),
    Row("/dns/search", Passed, "[]", ""),
    Row("/dns/options", Passed, "[]", ""),
    Row("/other", Passed, "2", "Members that are not known"),
];

pub(super) const OLD_RESULTS: &[Row] = &[
    Row("/cniVersion", Refused, "\"0.5.0\"", "As above"),
    Row(
        "/ip4",
        Honoured,
        "null",
        "Becomes an entry of `ips` without an interface; for a network of these versions the first address of the family becomes this",
    ),
    Row("/ip4/ip", Honoured, "\"10.0.0.3/24\"", "As `ips[].address`; must be there"),
    Row("/ip4/gateway", Passed, "\"10.0.0.9\"", ""),
    Row("/ip4/routes", Passed, "null", "Become part of `routes`, by family"),
    Row("/ip4/routes/0/dst", Passed, "\"10.0.0.0/8\"", ""),
    Row("/ip4/routes/0/gw", Passed, "\"10.0.0.9\"", ""),
    Row("/ip6", Honoured, "null", "As `ip4`"),
    Row("/ip6/ip", Honoured, "\"fd00::3/64\"", ""),
    Row("/ip6/gateway", Passed, "\"fd00::9\"", ""),
    Row("/ip6/routes", Passed, "null", ""),
    Row("/ip6/routes/0/dst", Passed, "\"fd00::/8\"", ""),
    Row("/ip6/routes/0/gw", Passed, "\"fd00::9\"", ""),
    Row("/dns", Passed, "null", ""),
    Row("/dns/nameservers", Passed, "[]", ""),
    Row("/dns/domain", Passed, "\"x\"", ""),
    Row("/dns/search", Passed, "[]", ""),
    Row("/dns/options", Passed, "[]", ""),
];

pub(super) const ERRORS: &[Row] = &[
    Row("/cniVersion", Ignored, "\"0.1.0\"", "The other members are the same in all versions"),
    Row(
        "/code",
        Honoured,
        "11",
        "11: the error is a temporary one. 3 for DEL: there is nothing to undo, so DEL is done. Others are shown",
    ),
    Row(
        "/msg",
        Honoured,
        "\"x\"",
        "Shown, at most 400 characters. An output without it is no error of CNI: exit status and output are shown",
    ),
    Row("/details", Honoured, "\"x\"", "Shown, at most 400 characters"),
];

pub(super) const COMMANDS: &str = "
## Commands

| command | | |
| --- | --- | --- |
| `ADD` | honoured | All plugins in order, in one time limit (`network.timeout_seconds`); the first failure ends it, and DEL undoes it. |
| `DEL` | honoured | All plugins in reverse order with ADD's configuration, arguments and result, even if one fails; only the first, which gives the addresses back, waits until the others have succeeded, unless ADD has failed (with libcni each waits). One that fails is repeated in the background, and before the ADD of a pod with the same host port, which is refused while it fails. `prevResult` is given since 0.4.0. |
| `CHECK` | honoured | Since 0.4.0, once for each pod after the start of the daemon. What it finds is logged. Some plugins find faults that are none, such as Debian 12's portmap in the host ports of dual-stack pods: `disableCheck`. |
| `GC` | honoured | Since 1.1.0, after the start and every hour, while no ADD, DEL or CHECK runs (STATUS may: it changes nothing). `cni.dev/valid-attachments`, and with the same value `cni.dev/attachments`, as the specification called it first, have the pods with a lease, also those whose DEL is due: `containerID`, `ifname`. Every plugin is told, even if one fails. |
| `STATUS` | honoured | Since 1.1.0, when the folder changes and every 10 s; decides NetworkReady. Codes 50 and 51 are shown like others. |
| `VERSION` | ignored | Not asked: its `supportedVersions` could only replace one error by another. The configuration chooses the version, and a plugin that does not know it says so in ADD. |

## What it was tried with

Real plugins, in the tests of `runtime/network`: Debian's (CNI 1.0.0), and, built from their Go modules (`integration/cni`),
containernetworking/plugins 1.10 (CNI 1.1.0), the Flannel plugin of its release 0.9.1, which was the last with it, and
Multus 3.9 with the plugins of a delegate. Flannel's own repository and Multus 4 are no Go modules that the module proxy
serves. Cilium's and Calico's plugins do nothing without their agents, so that what they print is replayed instead, like
that of Azure's and AWS's (`fixtures/result`).
";
