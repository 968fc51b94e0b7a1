//! What the fake knows and how it answers.

use std::collections::BTreeMap;

use plimsoll_units::{Bytes, MemTarget};
use serde_json::{Value, json};

/// How a connection begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Greeting {
    /// As QEMU does.
    #[default]
    Proper,
    /// With nothing.
    Silence,
    /// With these bytes.
    Bytes(Vec<u8>),
}

/// The state of the fake. Change it through [`super::FakeQemu::with`].
#[derive(Debug)]
pub struct Machine {
    /// How the next connection begins.
    pub greeting: Greeting,
    /// Whether the virtual CPUs run.
    pub running: bool,
    /// The name, as given with `-name`.
    pub name: Option<String>,
    /// The memory the guest is told of.
    pub memory: Bytes,
    /// Whether there is a balloon device.
    pub balloon: bool,
    /// Whether a guest's driver follows each target at once.
    pub driver: bool,
    /// The target last set.
    pub target: Option<MemTarget>,
    /// What the guest holds.
    pub actual: MemTarget,
    /// The polling interval in seconds.
    pub stats_interval_s: u32,
    /// The statistics: name and JSON text of the value.
    pub stats: BTreeMap<String, String>,
    /// When they came, seconds of the wall clock.
    pub last_update_s: u64,
    /// Answers nothing, but reads.
    pub deaf: bool,
    /// Keeps replies back until this is false again.
    pub hold: bool,
    /// JSON texts to answer instead of what a command returns.
    pub instead: BTreeMap<String, String>,
    /// The commands heard, in order.
    pub heard: Vec<String>,
    pub(super) outbox: Vec<u8>,
    pub(super) hang_up: bool,
    held: Vec<u8>,
    negotiated: bool,
}

/// A refusal: QEMU's error class and words.
type Refusal = (&'static str, String);

impl Default for Machine {
    fn default() -> Self {
        Self {
            greeting: Greeting::Proper,
            running: false,
            name: None,
            memory: Bytes::mib(128),
            balloon: true,
            driver: false,
            target: None,
            actual: MemTarget(Bytes::mib(128)),
            stats_interval_s: 0,
            stats: ["stat-free-memory", "stat-total-memory", "stat-available-memory"]
                .map(|name| (name.to_owned(), u64::MAX.to_string()))
                .into(),
            last_update_s: 0,
            deaf: false,
            hold: false,
            instead: BTreeMap::new(),
            heard: Vec::new(),
            outbox: Vec::new(),
            hang_up: false,
            held: Vec::new(),
            negotiated: false,
        }
    }
}

impl Machine {
    /// Sends an event; `data` is JSON.
    pub fn event(&mut self, name: &str, data: &Value) {
        let timestamp = json!({ "seconds": 1_795_260_309, "microseconds": 177_678 });
        self.line(&json!({ "timestamp": timestamp, "event": name, "data": data }).to_string());
    }

    /// Sends the replies that were held back.
    pub fn release(&mut self) {
        self.hold = false;
        self.outbox.append(&mut self.held);
    }

    pub(super) fn greet(&mut self) {
        self.hang_up = false;
        match &self.greeting {
            Greeting::Proper => {
                let triple = json!({ "major": 7, "minor": 2, "micro": 22 });
                let version = json!({ "qemu": triple, "package": "straw" });
                let greeting = json!({ "QMP": { "version": version, "capabilities": ["oob"] } });
                self.line(&greeting.to_string());
            }
            Greeting::Silence => {}
            Greeting::Bytes(bytes) => self.outbox.extend_from_slice(bytes),
        }
    }

    pub(super) fn hung_up(&mut self) {
        self.negotiated = false;
        self.outbox.clear();
        self.held.clear();
    }

    pub(super) fn hear(&mut self, line: &str) {
        let request: Value = serde_json::from_str(line).unwrap_or_default();
        let command = request.pointer("/execute").and_then(Value::as_str).unwrap_or_default();
        self.heard.push(command.to_owned());
        if self.deaf {
            return;
        }
        let id = request.pointer("/id").cloned().unwrap_or_default();
        let arguments = request.pointer("/arguments").cloned().unwrap_or_default();
        let reply = match self.instead.get(command) {
            Some(text) => format!("{{\"return\": {text}, \"id\": {id}}}"),
            None => match self.answer(command, &arguments) {
                Ok(result) => json!({ "return": result, "id": id }).to_string(),
                Err((class, desc)) => {
                    json!({ "id": id, "error": { "class": class, "desc": desc } }).to_string()
                }
            },
        };
        if self.hold {
            self.held.extend_from_slice(reply.as_bytes());
            self.held.extend_from_slice(b"\r\n");
        } else {
            self.line(&reply);
        }
    }

    fn line(&mut self, text: &str) {
        self.outbox.extend_from_slice(text.as_bytes());
        self.outbox.extend_from_slice(b"\r\n");
    }

    fn answer(&mut self, command: &str, arguments: &Value) -> Result<Value, Refusal> {
        if command == "qmp_capabilities" {
            self.negotiated = true;
            return Ok(json!({}));
        }
        if !self.negotiated {
            let desc = "Expecting capabilities negotiation with 'qmp_capabilities'";
            return Err(("CommandNotFound", desc.to_owned()));
        }
        match command {
            "query-status" => Ok(json!({ "running": self.running, "status": self.status() })),
            "query-name" => Ok(self.name.as_ref().map_or(json!({}), |name| json!({ "name": name }))),
            "query-version" => Ok(json!({ "qemu": { "major": 7, "minor": 2, "micro": 22 }, "package": "" })),
            "query-memory-size-summary" => Ok(json!({ "base-memory": self.memory.0, "plugged-memory": 0 })),
            "query-balloon" if self.balloon => Ok(json!({ "actual": self.actual.0.0 })),
            "balloon" if self.balloon => self.set_target(arguments),
            "query-balloon" | "balloon" => {
                Err(("DeviceNotActive", "No balloon device has been activated".to_owned()))
            }
            "qom-list" | "qom-get" | "qom-set" => self.qom(command, arguments),
            _ => self.run_state(command),
        }
    }

    const fn status(&self) -> &'static str {
        if self.running { "running" } else { "paused" }
    }

    fn set_target(&mut self, arguments: &Value) -> Result<Value, Refusal> {
        let bytes = arguments.pointer("/value").and_then(Value::as_u64).unwrap_or_default();
        if bytes == 0 {
            return Err(("GenericError", "Parameter 'target' expects a size".to_owned()));
        }
        let target = MemTarget(Bytes(bytes).min(self.memory));
        self.target = Some(target);
        if self.driver && self.actual != target {
            self.actual = target;
            self.event("BALLOON_CHANGE", &json!({ "actual": target.0.0 }));
        }
        Ok(json!({}))
    }

    fn qom(&mut self, command: &str, arguments: &Value) -> Result<Value, Refusal> {
        let text = |key| arguments.pointer(key).and_then(Value::as_str).unwrap_or_default();
        let own = json!({ "name": "type", "type": "string" });
        let device = json!({ "name": "balloon0", "type": "child<virtio-balloon-pci>" });
        match (command, text("/path"), text("/property")) {
            ("qom-list", "/machine/peripheral", _) if self.balloon => Ok(json!([own, device])),
            ("qom-list", "/machine/peripheral" | "/machine/peripheral-anon", _) => Ok(json!([own])),
            ("qom-get", "/machine/peripheral/balloon0", "guest-stats") if self.balloon => {
                let stats: Vec<String> = self.stats.iter().map(|(k, v)| format!("\"{k}\": {v}")).collect();
                let text = format!(
                    "{{\"stats\": {{{}}}, \"last-update\": {}}}",
                    stats.join(","),
                    self.last_update_s
                );
                serde_json::from_str(&text).map_err(|err| ("GenericError", err.to_string()))
            }
            ("qom-set", "/machine/peripheral/balloon0", "guest-stats-polling-interval") if self.balloon => {
                let seconds = arguments.pointer("/value").and_then(Value::as_u64).unwrap_or_default();
                self.stats_interval_s = u32::try_from(seconds).unwrap_or(u32::MAX);
                Ok(json!({}))
            }
            (_, path, _) => Err(("DeviceNotFound", format!("Device '{path}' not found"))),
        }
    }

    fn run_state(&mut self, command: &str) -> Result<Value, Refusal> {
        let was_running = self.running;
        match command {
            "stop" => self.running = false,
            "cont" => self.running = true,
            "system_reset" => {
                self.event("RESET", &json!({ "guest": false, "reason": "host-qmp-system-reset" }))
            }
            "system_powerdown" => self.event("POWERDOWN", &json!({})),
            "quit" => {
                self.event("SHUTDOWN", &json!({ "guest": false, "reason": "host-qmp-quit" }));
                self.hang_up = true;
            }
            _ => return Err(("CommandNotFound", format!("The command {command} has not been found"))),
        }
        match (was_running, self.running) {
            (true, false) => self.event("STOP", &json!({})),
            (false, true) => self.event("RESUME", &json!({})),
            _ => {}
        }
        Ok(json!({}))
    }
}
