//! The machine monitor: states, their traps, and the guest.
//!
//! Owns everything that an answer depends on. Called by the server.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use crate::disks::{Confined, HeldDisk};
use crate::remove;

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Option<Value>,
    /// The process ends after this answer.
    pub(crate) ends: bool,
}

impl Answer {
    pub(crate) fn done() -> Self {
        Self { status: 204, body: None, ends: false }
    }

    pub(crate) fn told(body: Value) -> Self {
        Self { status: 200, body: Some(body), ends: false }
    }

    pub(crate) fn error(status: u16, chain: &[&str]) -> Self {
        Self { status, body: Some(json!(chain)), ends: false }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guest {
    Runs,
    Paused,
    Hangs,
}

/// What exists of a machine besides its configuration.
pub(crate) struct Machine {
    guest: Guest,
    /// Each held until it is ejected, or as long as the machine exists.
    pub(crate) disks: Vec<HeldDisk>,
}

/// A serial line: what the guest says goes in, the line ends when this is dropped.
struct Line {
    says: mpsc::UnboundedSender<Vec<u8>>,
    _alive: watch::Sender<()>,
}

pub(crate) struct Monitor {
    events: File,
    log: Box<dyn Write>,
    socket: PathBuf,
    began: Instant,
    pub(crate) config: Option<Value>,
    /// By the rules of the first machine that asked for it, and for ever.
    pub(crate) confined: Confined,
    pub(crate) machine: Option<Machine>,
    /// A boot that failed late: a machine that neither runs nor can be booted.
    half_made: bool,
    line: Option<Line>,
    /// What clients of the serial line typed.
    typed: mpsc::UnboundedSender<u8>,
    typed_waiting: Option<mpsc::UnboundedReceiver<u8>>,
}

impl Monitor {
    pub(crate) fn new(events: File, log: Box<dyn Write>, socket: PathBuf) -> Self {
        let (typed, waiting) = mpsc::unbounded_channel();
        Self {
            events,
            log,
            socket,
            began: Instant::now(),
            config: None,
            confined: Confined::default(),
            machine: None,
            half_made: false,
            line: None,
            typed,
            typed_waiting: Some(waiting),
        }
    }

    /// Writes an event as the real one does: pretty, with an empty line after it.
    pub(crate) fn tell(&mut self, source: &str, event: &str) {
        self.tell_of(source, event, &Value::Null);
    }

    /// The same, about something.
    pub(crate) fn tell_of(&mut self, source: &str, event: &str, properties: &Value) {
        let since = self.began.elapsed();
        let event = json!({
            "timestamp": { "secs": since.as_secs(), "nanos": since.subsec_nanos() },
            "source": source, "event": event, "properties": properties,
        });
        let _ = write!(self.events, "{event:#}\n\n");
    }

    /// The machine ends, and with it the process: the same for a guest that powers off, a signal
    /// and an order.
    pub(crate) fn power_off(&mut self) -> ! {
        self.tell("vm", "shutdown");
        self.tell("vm", "deleted");
        self.tell("vmm", "shutdown");
        if let Some(serial) = self.serial() {
            let _ = remove(&serial);
        }
        self.machine = None;
        let _ = remove(&self.socket);
        std::process::exit(0);
    }

    pub(crate) fn answer(&mut self, method: &str, name: &str, body: &[u8]) -> Answer {
        match (method, name) {
            ("GET", "vmm.ping") => Answer::told(json!({
                "build_version": "v53.0", "version": "53.0.0", "pid": std::process::id(), "features": ["kvm"],
            })),
            ("GET", "vm.info") => self.information(),
            ("PUT", "vm.create") => self.create(body),
            ("PUT", "vm.boot") => self.boot(),
            ("PUT", "vm.delete") => self.delete(),
            ("PUT", "vm.shutdown") => {
                self.machine = None;
                self.half_made = false;
                Answer::done()
            }
            ("PUT", "vmm.shutdown") => Answer { status: 200, body: None, ends: true },
            ("PUT", "vm.pause") => self.change(Guest::Runs, Guest::Paused),
            ("PUT", "vm.resume") => self.change(Guest::Paused, Guest::Runs),
            ("PUT", "vm.reboot") => self.reboot(),
            ("PUT", "vm.add-disk") => self.add_disk(body),
            ("PUT", "vm.remove-device") => self.remove_device(body),
            ("PUT", "vm.resize-disk") => self.resize_disk(body),
            // Heard by every guest, obeyed by some; this one does not.
            ("PUT", "vm.power-button") => match self.machine {
                Some(_) => Answer::done(),
                None => Answer::error(500, &["Error from API", "The VM is not running"]),
            },
            _ => Answer::error(404, &["Not found"]),
        }
    }

    fn information(&self) -> Answer {
        let Some(config) = &self.config else {
            return Answer::error(404, &["Error from API", "VM is not created"]);
        };
        let state = match self.machine.as_ref().map(|machine| machine.guest) {
            Some(Guest::Runs | Guest::Hangs) => "Running",
            Some(Guest::Paused) => "Paused",
            None => "Created",
        };
        let mut told = json!({ "config": config, "state": state, "memory_actual_size": 0 });
        if let Some(machine) = &self.machine {
            told["device_tree"] = machine.device_tree();
        }
        Answer::told(told)
    }

    /// Checks nothing but the form, but makes the serial socket; keeps the configuration if it
    /// cannot.
    fn create(&mut self, body: &[u8]) -> Answer {
        let Ok(config) = serde_json::from_slice::<Value>(body) else {
            return Answer::error(400, &["Error from API", "Failed to deserialize JSON"]);
        };
        let cpus = ["/cpus/boot_vcpus", "/cpus/max_vcpus"];
        if cpus.iter().any(|name| config.pointer(name).and_then(Value::as_u64).is_none()) {
            return Answer::error(400, &["Error from API", "Failed to deserialize JSON"]);
        }
        if self.config.is_some() {
            return Answer::error(500, &["Error from API", "VM is already created"]);
        }
        self.confined = Confined::of(&config);
        self.config = Some(config);
        match self.open_line() {
            Ok(()) => Answer::done(),
            Err(error) => Answer::error(
                500,
                &["Error from API", "Error creating console", &error.to_string()],
            ),
        }
    }

    fn boot(&mut self) -> Answer {
        let Some(config) = self.config.clone() else {
            return Answer::error(
                500,
                &["Error from API", "The VM could not boot", "VM config is missing"],
            );
        };
        if self.machine.is_some() || self.half_made {
            return Answer::error(500, &["Error from API", "VM is already created"]);
        }
        let failed =
            |why: &str| Answer::error(500, &["Error from API", "The VM could not boot", why]);
        self.tell("vm", "booting");
        let text = |value: &Value, name: &str| value[name].as_str().map(PathBuf::from);
        let payload = &config["payload"];
        let kernel = text(payload, "firmware").or_else(|| text(payload, "kernel"));
        // Missing files are found early: nothing is left half-made.
        if kernel.is_none_or(|path| !path.is_file()) {
            return failed("Error manipulating firmware file");
        }
        if payload["firmware"].is_string() && payload["kernel"].is_string() {
            return failed("Both firmware and kernel are given");
        }
        if text(payload, "initramfs").is_some_and(|path| !path.is_file()) {
            return failed("Cannot load initramfs into memory");
        }
        let disks = config["disks"].as_array().cloned().unwrap_or_default();
        if disks.iter().any(|disk| text(disk, "path").is_none_or(|path| !path.is_file())) {
            return failed("Failed to open disk");
        }
        if let Err(why) = open_taps(&config) {
            self.half_made = true;
            return failed(why);
        }
        let mut held = Vec::new();
        for disk in &disks {
            match HeldDisk::open(disk, &self.confined) {
                Ok(disk) => held.push(disk),
                Err(why) => {
                    self.half_made = true;
                    return failed(&why);
                }
            }
        }
        self.machine = Some(Machine { guest: Guest::Runs, disks: held });
        self.greet();
        self.tell("vm", "booted");
        Answer::done()
    }

    fn delete(&mut self) -> Answer {
        if self.config.is_none() {
            return Answer::error(404, &["Error from API", "VM is not created"]);
        }
        self.line = None;
        if let Some(serial) = self.serial() {
            let _ = remove(&serial);
        }
        (self.config, self.machine, self.half_made) = (None, None, false);
        self.tell("vm", "deleted");
        Answer::done()
    }

    fn change(&mut self, from: Guest, to: Guest) -> Answer {
        match &mut self.machine {
            Some(machine) if machine.guest == from => {
                machine.guest = to;
                self.tell("vm", if to == Guest::Paused { "paused" } else { "resumed" });
                Answer::done()
            }
            _ => Answer::error(500, &["Error from API", "The VM is in the wrong state"]),
        }
    }

    /// Makes the serial line anew: confined without a rule on its directory, that fails.
    fn reboot(&mut self) -> Answer {
        if self.machine.is_none() {
            return Answer::error(500, &["Error from API", "The VM is not running"]);
        }
        self.tell("vm", "rebooting");
        self.line = None;
        let opened = if self.may_make_the_line_anew() { self.open_line() } else { denied() };
        if let Err(error) = opened {
            return Answer::error(500, &["Error from API", "Could not reboot", &error.to_string()]);
        }
        // Every disk is opened again by its path; what was asked to go is gone.
        let disks = self.config.as_ref().and_then(|config| config["disks"].as_array().cloned());
        if let Some(machine) = &mut self.machine {
            machine.guest = Guest::Runs;
            machine.disks.clear();
            for disk in disks.unwrap_or_default() {
                match HeldDisk::open(&disk, &self.confined) {
                    Ok(disk) => machine.disks.push(disk),
                    Err(why) => {
                        return Answer::error(500, &["Error from API", "Could not reboot", &why]);
                    }
                }
            }
        }
        self.greet();
        self.tell("vm", "rebooted");
        Answer::done()
    }

    fn may_make_the_line_anew(&self) -> bool {
        let Some(config) = &self.config else { return false };
        if config["landlock_enable"] != true {
            return true;
        }
        let serial = self.serial().unwrap_or_default();
        let rules = config["landlock_rules"].as_array().cloned().unwrap_or_default();
        rules.iter().any(|rule| {
            rule["access"] == "rw"
                && rule["path"]
                    .as_str()
                    .is_some_and(|path| serial.parent() == Some(Path::new(path)))
        })
    }

    fn serial(&self) -> Option<PathBuf> {
        let serial = &self.config.as_ref()?["serial"];
        (serial["mode"] == "Socket").then(|| serial["socket"].as_str().map(PathBuf::from)).flatten()
    }

    fn greet(&self) {
        self.say(b"TINY-GUEST UP\r\n");
    }

    fn say(&self, bytes: &[u8]) {
        if let Some(line) = &self.line {
            let _ = line.says.send(bytes.to_vec());
        }
    }

    fn open_line(&mut self) -> std::io::Result<()> {
        let Some(path) = self.serial() else { return Ok(()) };
        if self.machine.is_some() {
            remove(&path)?;
        }
        let listener = UnixListener::bind(path)?;
        let (says, said) = mpsc::unbounded_channel();
        let (alive, ends) = watch::channel(());
        tokio::task::spawn_local(carry(listener, said, ends, self.typed.clone()));
        self.line = Some(Line { says, _alive: alive });
        Ok(())
    }

    /// The guest takes one letter.
    fn obey(&mut self, letter: u8) {
        if self.machine.as_ref().is_none_or(|machine| machine.guest != Guest::Runs) {
            return;
        }
        match letter {
            b'p' => self.power_off(),
            b't' => {
                let _ = writeln!(self.log, "cloud-hypervisor: <vcpu0> ERROR: VCPU generated error");
                self.power_off()
            }
            b'r' => {
                let status = self.reboot().status;
                if status != 204 {
                    std::process::exit(1);
                }
            }
            b'e' => self.eject(),
            b'h' => {
                if let Some(machine) = &mut self.machine {
                    machine.guest = Guest::Hangs;
                }
            }
            other => self.say(&[other]),
        }
    }

    /// What runs the guest.
    pub(crate) fn run_guest(monitor: &Rc<RefCell<Self>>) {
        let Some(mut typed) = monitor.borrow_mut().typed_waiting.take() else { return };
        let monitor = Rc::clone(monitor);
        tokio::task::spawn_local(async move {
            while let Some(letter) = typed.recv().await {
                monitor.borrow_mut().obey(letter);
            }
        });
    }
}

fn denied() -> std::io::Result<()> {
    Err(std::io::ErrorKind::PermissionDenied.into())
}

/// Looks at the taps that cards are to have, as far as the process may.
fn open_taps(config: &Value) -> Result<(), &'static str> {
    let rules = config["landlock_rules"].as_array().cloned().unwrap_or_default();
    let may_read = |file: &Path| {
        let mut paths = rules.iter().filter_map(|rule| rule["path"].as_str());
        config["landlock_enable"] != true || paths.any(|path| file.starts_with(path))
    };
    for card in config["net"].as_array().into_iter().flatten() {
        let tap = Path::new("/sys/devices/virtual/net").join(card["tap"].as_str().unwrap_or("."));
        // The real one tries to make a tap that is not there; the user that it runs under may not.
        if !tap.join("tun_flags").is_file() {
            return Err("Unable to configure tap interface: Operation not permitted (os error 1)");
        }
        if !may_read(&tap) {
            return Err("Failed to read the TAP flags from sysfs: Permission denied (os error 13)");
        }
    }
    Ok(())
}

/// Carries one serial line: keeps what is said until there is a client; a new client takes the
/// place of the old.
async fn carry(
    listener: UnixListener,
    mut said: mpsc::UnboundedReceiver<Vec<u8>>,
    mut ends: watch::Receiver<()>,
    typed: mpsc::UnboundedSender<u8>,
) {
    let (mut client, mut reading) = (None, None);
    let mut kept: Vec<u8> = Vec::new();
    loop {
        tokio::select! {
            _ = ends.changed() => return,
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                let (read, mut write) = UnixStream::into_split(stream);
                let _ = write.write_all(&std::mem::take(&mut kept)).await;
                client = Some(write);
                let task = tokio::task::spawn_local(listen(read, typed.clone()));
                if let Some(old) = reading.replace(AbortOnDrop(task)) { drop(old) }
            }
            Some(bytes) = said.recv() => match &mut client {
                Some(client) => { let _ = client.write_all(&bytes).await; }
                None => kept.extend(bytes),
            },
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn listen(mut read: OwnedReadHalf, typed: mpsc::UnboundedSender<u8>) {
    while let Ok(letter) = read.read_u8().await {
        let _ = typed.send(letter);
    }
}
