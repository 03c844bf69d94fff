//! Machines that boot a kernel directly: no firmware has a part in it, and the process may read
//! what it boots.

use dagger_agent::hypervisor::{DirectBoot, Hypervisor, HypervisorError, Power};
use serde_json::{Value, json};

use super::host::{GREETING, Host, VM, call, until};

/// The guest as a kernel of its own, beside an initial RAM disk that it does not read; what stands
/// in the firmware's place is none.
fn kernel(host: &Host) -> DirectBoot {
    let (kernel, initrd) = (host.path("kernel.elf"), host.path("initrd"));
    std::fs::rename(host.path("guest.elf"), &kernel).unwrap();
    std::fs::write(host.path("guest.elf"), "no firmware").unwrap();
    std::fs::write(&initrd, b"070701").unwrap();
    let command_line = Some("console=ttyS0 \"a b\"".parse().unwrap());
    DirectBoot { kernel, initrd: Some(initrd), command_line }
}

fn configuration(host: &Host) -> Value {
    let (status, body) = call(&host.place(VM, "api.sock"), "GET", "vm.info", "");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["config"].take()
}

#[test]
fn cloud_hypervisor_boots_a_kernel_with_its_initrd_and_command_line_and_resets_into_it_again() {
    let host = Host::new();
    let boot = kernel(&host);
    let mut machine = host.specification(VM);
    machine.boot = Some(boot.clone());
    host.hypervisor.define(&machine).unwrap();
    host.hypervisor.start(VM).unwrap();
    until("the guest is up", || host.console(VM).contains(GREETING));
    let told = configuration(&host);
    let payload = &told["payload"];
    assert_eq!(payload["kernel"], json!(boot.kernel));
    assert_eq!(payload["initramfs"], json!(boot.initrd));
    assert_eq!(payload["cmdline"], json!("console=ttyS0 \"a b\""));
    assert!(payload["firmware"].is_null(), "{payload}");
    let rules = told["landlock_rules"].as_array().unwrap();
    for file in [&boot.kernel, boot.initrd.as_ref().unwrap()] {
        assert!(rules.contains(&json!({ "path": file, "access": "r" })), "{rules:?}");
    }
    let before = host.pid(VM);
    host.type_until(VM, b'r', || host.console(VM).matches(GREETING).count() > 1);
    assert_eq!(host.pid(VM), before);
    // The next agent finds it as it is.
    let mut host = host;
    host.restart_agent();
    assert_eq!(host.power(VM), Some(Power::Running));
    assert_eq!(host.pid(VM), before);
}

#[test]
fn cloud_hypervisor_a_missing_kernel_or_initrd_fails_the_start_and_the_next_start_works() {
    let host = Host::new();
    let boot = kernel(&host);
    let mut machine = host.specification(VM);
    machine.boot = Some(boot.clone());
    host.hypervisor.define(&machine).unwrap();
    for file in [boot.kernel, boot.initrd.unwrap()] {
        let away = host.path("away");
        std::fs::rename(&file, &away).unwrap();
        let started = host.hypervisor.start(VM);
        assert!(matches!(started, Err(HypervisorError::Failed(_))), "{started:?}");
        assert_eq!(host.power(VM), Some(Power::Stopped));
        std::fs::rename(&away, &file).unwrap();
    }
    host.hypervisor.start(VM).unwrap();
    assert_eq!(host.power(VM), Some(Power::Running));
}
