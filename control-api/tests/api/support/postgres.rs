//! Owns a throw-away PostgreSQL: one cluster per test process, one database per test.
//!
//! A shell keeps the cluster and reads from a pipe that this process holds open: however the
//! process ends, the pipe closes, and the shell stops the cluster and removes its files.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const KEEPER: &str = r#"
PATH=$PATH:$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
command -v initdb >/dev/null || { echo 'initdb is missing: apt-get install postgresql'; exit 1; }
dir=$(mktemp -d --suffix=.holdfast-pg)
user=postgres; id -u $user >/dev/null 2>&1 || user=nobody
as() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid="$(id -u $user)" --regid="$(id -g $user)" --clear-groups -- "$@"
    else
        "$@"
    fi
}
[ "$(id -u)" != 0 ] || chown $user "$dir"
cd "$dir"
as initdb -D "$dir/data" -A trust -U holdfast --no-sync --locale=C -E UTF8 >"$dir/log" 2>&1 &&
as pg_ctl -D "$dir/data" -l "$dir/server.log" -w start \
    -o "-k $dir -c listen_addresses='' -c fsync=off -c max_connections=300" >>"$dir/log" 2>&1 ||
    { echo "PostgreSQL does not start:" $(tail -n 5 "$dir/log" "$dir/server.log" 2>&1); exit 1; }
echo "ready $dir"
read -r _
as pg_ctl -D "$dir/data" -m immediate stop >/dev/null 2>&1
rm -rf "$dir"
"#;

struct Cluster {
    dir: String,
    _keeper: Child,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

fn start() -> Cluster {
    let mut keeper = Command::new("sh")
        .args(["-c", KEEPER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(keeper.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let dir = line
        .trim()
        .strip_prefix("ready ")
        .unwrap_or_else(|| panic!("no PostgreSQL for the tests: {line}"));
    Cluster {
        dir: dir.to_owned(),
        _keeper: keeper,
    }
}

fn url(dir: &str, database: &str) -> String {
    let host = dir.replace('/', "%2F");
    format!("postgres://holdfast@{host}/{database}")
}

/// The address of a new, empty database.
pub fn fresh_database() -> String {
    let cluster = CLUSTER.get_or_init(start);
    let name = format!("t{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let mut client =
        postgres::Client::connect(&url(&cluster.dir, "postgres"), postgres::NoTls).unwrap();
    client
        .batch_execute(&format!("create database {name}"))
        .unwrap();
    url(&cluster.dir, &name)
}
