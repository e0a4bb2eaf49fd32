// What happens in the browser alone: conversations in its storage, files, light and dark, and keys.
window.corral = (() => {
  "use strict";
  const CHAT = "corral.chat.";
  const CURRENT = "corral.current";
  const read = (key) => {
    try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
  };
  const write = (key, value) => {
    try { localStorage.setItem(key, JSON.stringify(value)); return true; } catch { return false; }
  };
  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");

  // A tab keeps its own open conversation; a new tab starts with the one used last.
  const currentId = () => sessionStorage.getItem(CURRENT) || localStorage.getItem(CURRENT);
  const setCurrent = (id) => { sessionStorage.setItem(CURRENT, id); localStorage.setItem(CURRENT, id); };
  const all = () => Object.keys(localStorage)
    .filter((key) => key.startsWith(CHAT))
    .map(read)
    .filter((chat) => chat && chat.id && Array.isArray(chat.messages))
    .sort((a, b) => (b.updated || "").localeCompare(a.updated || ""));
  // One argument for a function of the page: hence the outer list.
  const index = (id) => [[...all().map((chat) => ({ id: chat.id, title: chat.title || "Untitled" })), { id: id || "" }]];
  const fresh = (settings) => ({ id: newId(), title: "", updated: "", settings: settings || {}, messages: [] });

  const save = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  // Conversations
  const current = () => read(CHAT + currentId()) || fresh(read("corral.settings"));
  const keep = (chat) => {
    if (!chat || !chat.id) return index(currentId());
    setCurrent(chat.id);
    write("corral.settings", chat.settings);
    if (chat.messages.length || localStorage.getItem(CHAT + chat.id)) {
      if (!write(CHAT + chat.id, chat)) alert("The browser's storage is full: export and delete old chats.");
    }
    return index(chat.id);
  };
  const open = (id) => read(CHAT + id) || current();
  const blank = (chat) => fresh(chat && chat.settings);
  const remove = (chat) => {
    if (!chat || !chat.id || !localStorage.getItem(CHAT + chat.id)) return blank(chat);
    if (!confirm(`Delete “${chat.title}”?`)) return chat;
    localStorage.removeItem(CHAT + chat.id);
    return blank(chat);
  };
  const take = (found) => {
    const chats = Array.isArray(found) ? found : [];
    chats.forEach((chat) => write(CHAT + chat.id, chat));
    return chats[0] || current();
  };

  // Files
  const download = (file) => { if (file) save(file.name, file.type, file.text); };
  const downloadAll = () => save("corral-chats.json", "application/json", JSON.stringify(all(), null, 2));
  const pick = () => new Promise((resolve) => {
    const input = document.createElement("input");
    input.type = "file";
    input.accept = ".json,application/json";
    input.onchange = () => input.files[0].text().then(resolve, () => resolve(""));
    input.oncancel = () => resolve("");
    input.click();
  });

  // The key lives as long as the tab.
  const key = () => sessionStorage.getItem("corral.key") || "";
  const keepKey = (value) => { sessionStorage.setItem("corral.key", value); return value; };

  // What the chat's copy buttons copy: without the lines on how an answer was made, and without invisible joiners.
  // Browsers hide the clipboard from pages that come over plain HTTP from another machine; there is an older way.
  const STATS = /\n?[^\n]*\n\s*\| \| \|\n(?:\|[^\n]*\|\n?)+/g;
  const oldWay = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    return Promise.resolve();
  };
  const clipboard = navigator.clipboard;
  const writeText = clipboard ? clipboard.writeText.bind(clipboard) : oldWay;
  const copy = (text) => writeText(text.replace(STATS, "").replaceAll("\u2060", "").trimEnd());
  if (clipboard) clipboard.writeText = copy;
  else Object.defineProperty(navigator, "clipboard", { value: { writeText: copy } });

  const showDark = () => {
    const wanted = localStorage.getItem("corral.dark");
    if (wanted !== null) document.body.classList.toggle("dark", wanted === "1");
  };
  const toggleDark = () => {
    localStorage.setItem("corral.dark", document.body.classList.contains("dark") ? "0" : "1");
    showDark();
  };

  // Keyboard: Esc stops, Ctrl+Shift+O begins a new chat, / goes to the message box.
  const click = (selector) => { const found = document.querySelector(selector); if (found) found.click(); };
  const typing = () => /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName || "");
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") click("#corral-box .stop-button");
    if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      click("#corral-new");
    }
    if (event.key === "/" && !typing()) {
      event.preventDefault();
      document.querySelector("#corral-box textarea")?.focus();
    }
  });
  // On a narrow window the sidebars lie over the chat: closed at first, and again after a choice or a tap beside them.
  const narrow = () => matchMedia("(max-width: 767px)").matches;
  const closeSidebars = () => document.querySelectorAll(".sidebar.open .toggle-button").forEach((one) => one.click());
  document.addEventListener("click", (event) => {
    if (narrow() && event.isTrusted && !event.target.closest(".sidebar, dialog")) closeSidebars();
  });
  // The chat follows an answer as long as its end is in view, and goes to the end for a new question.
  const follow = () => {
    const chat = document.querySelector("#corral-chat");
    const log = () => chat.querySelector(".bubble-wrap");
    let atEnd = true;
    let questions = 0;
    chat.addEventListener("scroll", () => {
      atEnd = log().scrollHeight - log().clientHeight - log().scrollTop < 60;
    }, { capture: true, passive: true });
    new MutationObserver(() => {
      const asked = chat.querySelectorAll(".user-row").length;
      if (asked !== questions) atEnd = true;
      questions = asked;
      if (atEnd && log()) log().scrollTop = log().scrollHeight;
    }).observe(chat, { childList: true, subtree: true, characterData: true });
  };

  const start = () => {
    showDark();
    follow();
    if (narrow()) closeSidebars();
    return current();
  };
  const chosen = (chat) => { if (narrow()) closeSidebars(); return chat; };

  return { start, keep, open: (id) => chosen(open(id)), blank: (chat) => chosen(blank(chat)), remove, take, download, downloadAll, pick, key, keepKey, toggleDark };
})();
