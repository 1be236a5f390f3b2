# The profile of containers that copepod runs and that name no other one. It guards what belongs to the whole node, also in
# a container with many capabilities or without masked paths. Everything else is left to namespaces, capabilities, seccomp
# and cgroups.
profile copepod-default-v1 flags=(attach_disconnected, mediate_deleted) {
  capability,
  file,
  network,
  umount,

  # The kernel's cryptography (AF_ALG), which seccomp cannot keep from 32-bit programs (socketcall).
  deny network alg,

  # Mounts could bring the files below to paths that no rule names.
  deny mount,
  deny remount,
  deny pivot_root,

  # The node sends signals; otherwise containers with this profile signal and trace each other only.
  # Whether a process exists may be asked of all (kill(2) with 0).
  signal (receive) peer=unconfined,
  signal (send, receive) set=("exists"),
  signal (send, receive) peer=copepod-default-v1,
  ptrace (trace, tracedby, read, readby) peer=copepod-default-v1,

  # /proc is written in the folders of processes (numbers) only. Of /proc/sys the limits of shared memory may be, which
  # belong to the IPC namespace.
  deny /proc/* w,
  deny /proc/[^0-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sy[^s]*/** w,
  deny /proc/sys[^/]*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{[^s],s[^h],sh[^m]}** w,
  deny /proc/kcore rwklx,
  deny /proc/sysrq-trigger rwklx,

  # Of /sys, files below /sys/fs/cgroup only.
  deny /sys/{[^f],f[^s]}** wklx,
  deny /sys/fs/{[^c],c[^g],cg[^r]}** wklx,
  # What tells secrets of the node: firmware, energy counters, security modules.
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
