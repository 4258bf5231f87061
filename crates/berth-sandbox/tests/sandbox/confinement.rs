//! What an app cannot do and cannot see.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use berth_sandbox::Reclaim;

use crate::world::{World, eventually, text};

pub async fn no_capabilities_no_new_privileges_and_a_filter(world: Arc<World>) {
    let (exit, text) = world
        .run("grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status; ulimit -c")
        .await;
    assert!(exit.success(), "{text}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(text.contains(&format!("{set}:\t0000000000000000")), "{set}: {text}");
    }
    assert!(
        text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"),
        "{text}"
    );
    assert!(
        text.contains("Uid:\t1000\t1000\t1000\t1000") && text.contains("Gid:\t1000\t1000\t1000\t1000"),
        "{text}"
    );
}

pub async fn the_image_and_the_source_are_read_only(world: Arc<World>) {
    let script = "for f in /x /etc/x /bin/x /workspace/x /workspace/sub/x /proc/sys/kernel/hostname /sys/x /dev/x /etc/hosts; do \
        (echo x > $f) 2>/dev/null && echo wrote $f; done; \
        for f in /app/x /tmp/x /dev/shm/x /run/x $HOME/x; do (echo x > $f) || echo cannot $f; done; \
        chmod 777 /workspace 2>/dev/null && echo chmod; touch /workspace/hello.txt 2>/dev/null && echo touch; \
        cp /bin/busybox /app/busybox && /app/busybox echo runs";
    let (exit, text) = world.run(script).await;
    assert_eq!(text, "runs\n");
    assert!(exit.success());
}

pub async fn nothing_of_the_host_is_seen(world: Arc<World>) {
    let script = "ls /proc | grep -c '^[0-9]'; hostname; cat /etc/hostname; ls /sys; ls /proc/1/root 2>&1; cat /proc/1/environ 2>&1; \
        ls /proc/1/fd 2>&1; wc -c < /proc/kcore; ls -A /proc/scsi /proc/acpi 2>/dev/null; ip -o link | wc -l; cat /proc/self/cgroup; \
        cat /proc/self/mounts";
    let (exit, text) = world.run(script).await;
    assert!(exit.success(), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let processes: u32 = lines[0].parse().unwrap();
    assert!(processes <= 5, "{text}");
    assert_eq!(lines[1..3], ["hello", "hello"]);
    assert!(text.contains("/proc/1/root: Permission denied"), "{text}");
    assert!(text.contains("/proc/1/environ': Permission denied"), "{text}");
    assert!(text.contains("/proc/1/fd': Permission denied"), "{text}");
    assert!(
        !text.contains(&world.instance),
        "the cgroup's place on the host is its own business: {text}"
    );
    assert!(
        !text.contains("/workspaces") && text.contains("tmpfs /app tmpfs rw,nosuid,nodev"),
        "{text}"
    );
    assert!(lines.contains(&"1"), "loopback only: {text}");
}

pub async fn forbidden_calls_are_refused(world: Arc<World>) {
    let script = "mount -t tmpfs x /tmp 2>&1; unshare -U true 2>&1; unshare -n true 2>&1; chroot / true 2>&1; \
        dmesg 2>&1 | head -1; swapon /app/x 2>&1; hostname evil 2>&1; nsenter -t 1 -m true 2>&1; mknod /tmp/d b 8 0 2>&1; \
        reboot -f 2>&1; (umount /tmp || true) 2>&1; echo end";
    let (exit, text) = world.run(script).await;
    assert!(exit.success(), "{text}");
    for what in [
        "mount:",
        "unshare:",
        "chroot:",
        "hostname:",
        "mknod:",
        "reboot:",
        "umount:",
    ] {
        let line = text
            .lines()
            .find(|l| l.contains(what))
            .unwrap_or_else(|| panic!("no {what} in {text}"));
        assert!(
            line.contains("not permitted") || line.contains("denied") || line.contains("must be root"),
            "{line}"
        );
    }
    assert_eq!(text.matches("unshare:").count(), 2, "{text}");
    assert!(text.ends_with("end\n"));
}

pub async fn a_frozen_sandbox_can_be_stopped(world: Arc<World>) {
    let spec = world.spec("trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done");
    let log_dir = spec.log_dir.clone();
    let (sandbox, _events) = world.start(spec).await;
    eventually("the app is ready", || text(&log_dir).contains("ready")).await;
    sandbox.freeze().unwrap();
    let frozen = sandbox.stats().cpu_usec;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(sandbox.stats().cpu_usec - frozen < 20_000, "it ran on");
    assert_eq!(sandbox.stop(Duration::from_secs(5)).await.unwrap().code, Some(6));
}

pub async fn a_frozen_sandbox_hands_its_pages_of_files_back_when_all_is_asked_for(world: Arc<World>) {
    // A file of the host read by a process inside: its pages are charged to the sandbox.
    let mut spec =
        world.spec("cat /workspace/ballast >/dev/null; trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done");
    let ballast = spec.source.join("ballast");
    std::fs::write(&ballast, vec![7; 16 << 20]).unwrap();
    // The pages that writing it left in memory are charged to this test.
    let dropped = Command::new("dd")
        .arg(format!("of={}", ballast.display()))
        .args(["oflag=nocache", "conv=notrunc,fdatasync", "count=0"])
        .output()
        .unwrap();
    assert!(dropped.status.success(), "{dropped:?}");
    spec.copy_source = false;
    let log_dir = spec.log_dir.clone();
    let (sandbox, _events) = world.start(spec).await;
    eventually("the app is ready", || text(&log_dir).contains("ready")).await;
    sandbox.freeze().unwrap();
    let before = sandbox.stats().memory;
    sandbox.reclaim(Reclaim::All, &|| false).unwrap();
    assert!(sandbox.stats().memory + (8 << 20) > before, "it was thawed meanwhile");
    sandbox.reclaim(Reclaim::All, &|| true).unwrap();
    let after = sandbox.stats().memory;
    assert!(after + (8 << 20) < before, "{before} bytes and then {after}");
    assert_eq!(sandbox.stop(Duration::from_secs(5)).await.unwrap().code, Some(6));
}
