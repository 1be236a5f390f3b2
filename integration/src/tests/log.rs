//! CRI log files.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::expect::ensure;
use crate::logfile::Log;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, unique};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(both_streams),
        test!(long_lines_are_cut),
        test!(no_newline_at_the_end),
        test!(empty_lines_and_binary),
        test!(terminal_is_one_stream),
        test!(reopen_after_rotation),
        test!(reopen_refused_unless_running),
        test!(rotation_under_load_loses_nothing).limit(120),
        test!(log_exists_at_start),
        test!(attempts_have_files_of_their_own),
        test!(log_folder_is_made),
        test!(log_folder_may_be_deleted_or_moved),
    ]
}

async fn both_streams(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let s = cx.run(&pod, &cx.shell("one", "for i in 1 2 3; do echo out $i; echo err $i >&2; done")).await?;
    let log = Log::read(&s.log_path)?;
    ensure!(log.text(Some("stdout")) == "out 1\nout 2\nout 3\n", "of stdout the log has {log:?}");
    ensure!(log.text(Some("stderr")) == "err 1\nerr 2\nerr 3\n", "of stderr the log has {log:?}");
    let mut times: Vec<&String> = log.lines.iter().map(|l| &l.time).collect();
    let written = times.clone();
    times.sort();
    ensure!(times == written, "times go backwards: {written:?}");
    Ok(())
}

async fn long_lines_are_cut(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for size in [16_383_usize, 16_384, 16_385, 32_768, 100_001] {
        let line = format!("head -c {size} /dev/zero | tr '\\0' x; echo");
        let s = cx.run(&pod, &cx.shell(&format!("c{size}"), &line)).await?;
        let log = Log::read(&s.log_path)?;
        ensure!(
            log.bytes(None).len() == size + 1,
            "of a line with {size} bytes the log has {} with the line feed",
            log.bytes(None).len()
        );
        let full = log.lines.iter().filter(|l| !l.partial).count();
        ensure!(
            full == 1 && log.lines.last().is_some_and(|l| !l.partial),
            "of a line with {size} bytes {full} pieces of {} are tagged F, not the last one alone",
            log.lines.len()
        );
        ensure!(
            log.lines.len() <= size / 4096 + 2,
            "a line with {size} bytes was cut into {} pieces",
            log.lines.len()
        );
    }
    Ok(())
}

async fn no_newline_at_the_end(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let s = cx.run(&pod, &cx.shell("one", "echo first; printf 'no end'")).await?;
    let log = Log::read(&s.log_path)?;
    ensure!(log.text(None) == "first\nno end", "the log is {log:?}");
    Ok(())
}

async fn empty_lines_and_binary(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let s = cx.run(&pod, &cx.shell("one", "printf '\\n\\n \\n\\377\\376 x\\n\\tend\\n'")).await?;
    let log = Log::read(&s.log_path)?;
    ensure!(log.bytes(None) == b"\n\n \n\xff\xfe x\n\tend\n", "the log has the bytes {:?}", log.bytes(None));
    Ok(())
}

async fn terminal_is_one_stream(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let s = cx
        .run(
            &pod,
            &cx.shell("one", "tty; echo out; echo err >&2; echo $TERM; [ -t 0 ] && echo terminal").terminal(),
        )
        .await?;
    let log = Log::read(&s.log_path)?;
    ensure!(log.lines.iter().all(|l| l.stream == "stdout"), "a terminal has only stdout: {log:?}");
    let text = log.text(None).replace('\r', "");
    ensure!(
        text.contains("/dev/")
            && text.contains("out\nerr\n")
            && text.contains("xterm\n")
            && text.contains("terminal\n"),
        "the terminal's log is {text}"
    );
    Ok(())
}

async fn reopen_after_rotation(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx
        .start(&pod, &cx.shell("one", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done"))
        .await?;
    let path = cx.cri.container(&id).await?.log_path;
    cx.said(&id, "line 5").await?;
    let old = format!("{path}.old");
    fs::rename(&path, &old)?;
    cx.cri.reopen_log(&id).await?;
    ensure!(Path::new(&path).exists(), "the new file does not exist when the call returns");
    let frozen = fs::read(&old)?;
    wait::until_true("a line in the new file", secs(5), || fs::metadata(&path).is_ok_and(|m| m.len() > 0))
        .await?;
    cx.cri.stop(&id, 0).await?;
    ensure!(fs::read(&old)? == frozen, "the old file changed after ReopenContainerLog");
    lines_are_numbered(&Log::read_all(&[Path::new(&old), Path::new(&path)])?)
}

async fn reopen_refused_unless_running(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let created = cx.create(&pod, &cx.sleeper("created")).await?;
    ensure!(
        cx.cri.reopen_log(&created).await.is_err(),
        "ReopenContainerLog of a created container succeeded"
    );
    let s = cx.run(&pod, &cx.shell("exited", "echo x")).await?;
    fs::rename(&s.log_path, format!("{}.moved", s.log_path))?;
    ensure!(cx.cri.reopen_log(&s.id).await.is_err(), "ReopenContainerLog of an exited container succeeded");
    ensure!(
        !Path::new(&s.log_path).exists(),
        "the failed call created a file, so kubelet cannot rename the old one back"
    );
    let unknown = cx.cri.reopen_log(&"9".repeat(64)).await;
    ensure!(unknown.is_err(), "ReopenContainerLog of an unknown container succeeded");
    Ok(())
}

async fn rotation_under_load_loses_nothing(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx
        .start(
            &pod,
            // It writes until it is told to stop, so that it is writing at each rotation, however fast it is.
            &cx.shell(
                "fast",
                "i=0; while [ ! -e /tmp/enough ]; do \
                 for n in 1 2 3 4 5 6 7 8 9 0; do echo line $i; i=$((i+1)); done; done; echo end $i; sleep 10000",
            ),
        )
        .await?;
    let path = cx.cri.container(&id).await?.log_path;
    let mut files = Vec::new();
    for n in 0..10 {
        wait::until_true("the new file to have 20,000 bytes", secs(30), || {
            fs::metadata(&path).is_ok_and(|file| file.len() > 20_000)
        })
        .await?;
        let old = format!("{path}.{n}");
        fs::rename(&path, &old)?;
        cx.cri.reopen_log(&id).await?;
        files.push(old);
    }
    files.push(path.clone());
    let paths: Vec<&Path> = files.iter().map(Path::new).collect();
    cx.cri.sh(&id, "touch /tmp/enough").await?;
    let log = wait::until("the writer's last line", secs(60), || async {
        let log = Log::read_all(&paths)?;
        Ok(log.text(None).lines().last().is_some_and(|last| last.starts_with("end ")).then_some(log))
    })
    .await?;
    let text = log.text(None);
    let (numbers, end) = text.trim_end().rsplit_once('\n').context("one line only")?;
    for (at, line) in numbers.lines().enumerate() {
        ensure!(line == format!("line {at}"), "line {at} is {line:?}");
    }
    ensure!(end == format!("end {}", numbers.lines().count()), "the last line is {end:?}");
    Ok(())
}

async fn log_exists_at_start(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("silent")).await?;
    let path = cx.cri.container(&id).await?.log_path;
    ensure!(path == format!("{}/silent/0.log", pod.config.log_directory), "log_path is {path}");
    ensure!(Path::new(&path).exists(), "StartContainer returned before the log existed");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path)?.permissions()) & 0o777;
    ensure!(mode & 0o007 == 0, "everybody can read the log: {mode:o}");
    Ok(())
}

async fn attempts_have_files_of_their_own(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for attempt in 0..3 {
        let config = cx.shell("again", &format!("echo attempt {attempt}")).with(|c| {
            c.log_path = format!("again/{attempt}.log");
            if let Some(m) = c.metadata.as_mut() {
                m.attempt = attempt;
            }
        });
        let s = cx.run(&pod, &config).await?;
        let text = Log::read(&s.log_path)?.text(None);
        ensure!(text == format!("attempt {attempt}\n"), "{} has {text:?}", s.log_path);
    }
    Ok(())
}

async fn log_folder_is_made(cx: Context) -> Result<()> {
    let mut config = cx.pod_config();
    config.log_directory = cx.node.paths.logs.join(format!("deep/er-{}", unique())).display().to_string();
    let pod = cx.pod_of(config).await?;
    let s = cx.run(&pod, &cx.shell("one", "echo made")).await.context("a missing log folder")?;
    let text = Log::read(&s.log_path)?.text(None);
    ensure!(text == "made\n", "{} has {text:?}", s.log_path);
    Ok(())
}

async fn log_folder_may_be_deleted_or_moved(cx: Context) -> Result<()> {
    let mut config = cx.pod_config();
    let (top, disk) = (cx.node.paths.logs.join(format!("top{}", unique())), format!("disk{}", unique()));
    config.log_directory = top.join("pod").display().to_string();
    let pod = cx.pod_of(config).await?;
    let id = cx.start(&pod, &cx.shell("one", "while :; do echo line; sleep 0.01; done")).await?;
    let path = cx.cri.container(&id).await?.log_path;
    let has_lines = || fs::metadata(&path).is_ok_and(|file| file.len() > 0);
    // As an operator does whose disk is full. kubelet then calls ReopenContainerLog, since the file is missing.
    fs::remove_dir_all(&top)?;
    cx.cri.reopen_log(&id).await.context("the log folder was deleted")?;
    wait::until_true("a line in the folder that was made again", secs(5), has_lines).await?;
    fs::remove_dir_all(&top)?;
    let s = cx
        .run(&pod, &cx.shell("two", "echo two"))
        .await
        .context("a container after the folder was deleted")?;
    ensure!(Log::read(&s.log_path)?.text(None) == "two\n", "{} has other lines", s.log_path);
    // Moved to another disk: copied, deleted and replaced by a symlink.
    let disk = cx.node.paths.logs.join(disk);
    fs::create_dir_all(disk.join("pod"))?;
    fs::remove_dir_all(&top)?;
    std::os::unix::fs::symlink(&disk, &top)?;
    cx.cri.reopen_log(&id).await.context("the log folder was moved")?;
    wait::until_true("a line where the symlink leads", secs(5), has_lines).await?;
    let s = cx
        .run(&pod, &cx.shell("three", "echo three"))
        .await
        .context("a container after the folder was moved")?;
    ensure!(Log::read(&s.log_path)?.text(None) == "three\n", "{} has other lines", s.log_path);
    Ok(())
}

/// Checks that the log has lines `line N` with consecutive numbers from 0.
fn lines_are_numbered(log: &Log) -> Result<()> {
    let text = log.text(None);
    ensure!(!text.is_empty(), "the log is empty");
    for (n, line) in text.lines().enumerate() {
        ensure!(line == format!("line {n}"), "instead of `line {n}` there is `{line}`");
    }
    Ok(())
}
