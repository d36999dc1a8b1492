//! A web server of somebody else on this machine: one page, and a list of what it was asked for, with which cookies.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

/// What was asked for: the path, and the cookies that came along.
type Asked = (String, Option<String>);

/// The server. It ends with this value.
pub(super) struct Site {
    pub(super) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    thread: Option<JoinHandle<()>>,
}

impl Site {
    /// Serves this page at every path of a free port of an address.
    pub(super) fn serve(ip: [u8; 4], page: &str) -> Self {
        let listener = TcpListener::bind(SocketAddr::from((ip, 0))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (list, page) = (Arc::clone(&asked), page.to_owned());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if answer(stream, &page, &list) == Some(()) {
                    return;
                }
            }
        });
        Self { address, asked, thread: Some(thread) }
    }

    /// The paths that were asked for.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").iter().map(|(path, _)| path.clone()).collect()
    }

    /// The cookies that were sent along.
    pub(super) fn cookies(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").iter().filter_map(|(_, cookies)| cookies.clone()).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let ended = TcpStream::connect(self.address).and_then(|mut s| s.write_all(b"END / HTTP/1.1\r\n\r\n"));
        if let (Ok(()), Some(thread)) = (ended, self.thread.take()) {
            let _ended = thread.join();
        }
    }
}

/// Answers one request; something once it is to end.
fn answer(mut stream: TcpStream, page: &str, list: &Mutex<Vec<Asked>>) -> Option<()> {
    // A browser opens connections ahead that it may never use.
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let cookies =
        head.iter().find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("cookie")));
    if method == "END" {
        return Some(());
    }
    list.lock().expect("not poisoned").push((path, cookies.map(|(_, value)| value.to_owned())));
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\naccess-control-allow-origin: *\r\nconnection: close\r\n\r\n",
        page.len()
    );
    let _gone = stream.write_all(format!("{head}{page}").as_bytes());
    None
}
